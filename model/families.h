// Private part of families.c: the mappers, one per family.
#pragma once

#include "model/family.h"

// families_dense.c
void map_llama(struct hparams *h, struct arch *arch); // Llama, Mistral, Mixtral, Ministral 3, ...
void map_qwen2(struct hparams *h, struct arch *arch);
void map_qwen3(struct hparams *h, struct arch *arch);
void map_gemma(struct hparams *h, struct arch *arch);
void map_gemma2(struct hparams *h, struct arch *arch);
void map_gemma3(struct hparams *h, struct arch *arch);
void map_phi3(struct hparams *h, struct arch *arch);
void map_olmo(struct hparams *h, struct arch *arch);
void map_olmo2(struct hparams *h, struct arch *arch); // OLMo 2 and 3
void map_starcoder2(struct hparams *h, struct arch *arch);
void map_exaone(struct hparams *h, struct arch *arch);
void map_exaone4(struct hparams *h, struct arch *arch);
void map_cohere(struct hparams *h, struct arch *arch);
void map_cohere2(struct hparams *h, struct arch *arch);
void map_smollm3(struct hparams *h, struct arch *arch);
void map_granite(struct hparams *h, struct arch *arch);
void map_glm(struct hparams *h, struct arch *arch); // GLM-4 9B and GLM-4 0414

// families_moe.c
void map_llama4(struct hparams *h, struct arch *arch);
void map_qwen2_moe(struct hparams *h, struct arch *arch);
void map_qwen3_moe(struct hparams *h, struct arch *arch);
void map_phimoe(struct hparams *h, struct arch *arch);
void map_deepseek(struct hparams *h, struct arch *arch); // V2, V3, R1
void map_granite_moe(struct hparams *h, struct arch *arch);
void map_gpt_oss(struct hparams *h, struct arch *arch);
void map_experts(struct hparams *h, struct arch *arch, const char *ffn_json); // E, k and width; arch->moe of a Mixtral
