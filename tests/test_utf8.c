// Repairing UTF-8: equal to the rule of the Unicode standard (a U+FFFD per longest beginning of a character), whole or
// in pieces cut anywhere.
#include "data/utf8.h"
#include "tests/harness.h"

#define BAD "\xEF\xBF\xBD"

static void repairs(const char *bytes, size_t length, const char *want) {
    struct text out = {0};
    CHECK_INT(utf8_repair(bytes, length, false, &out), length);
    CHECK_STR(text_str(&out), want);
    text_free(&out);
    for (size_t cut = 0; cut <= length; cut++) { // the same when it comes in two pieces
        size_t used = utf8_repair(bytes, cut, true, &out);
        CHECK(used <= cut && cut - used < 4);
        used += utf8_repair(bytes + used, length - used, false, &out);
        CHECK_INT(used, length);
        CHECK_STR(text_str(&out), want);
        text_free(&out);
    }
}
#define REPAIRS(bytes, want) repairs(bytes, sizeof bytes - 1, want)

TEST(what_is_whole_stays) {
    REPAIRS("", "");
    REPAIRS("plain text of more than eight bytes", "plain text of more than eight bytes");
    REPAIRS("\xC2\x80 \xE0\xA0\x80 \xED\x9F\xBF \xEF\xBF\xBF \xF0\x90\x80\x80 \xF4\x8F\xBF\xBF",
            "\xC2\x80 \xE0\xA0\x80 \xED\x9F\xBF \xEF\xBF\xBF \xF0\x90\x80\x80 \xF4\x8F\xBF\xBF");
}

TEST(what_is_cut_or_stray_is_replaced) {
    REPAIRS("a\xF0\x9F\x98", "a" BAD);
    REPAIRS("a\xF0\x9F\x98z\xF0\x9F\x98\x80", "a" BAD "z\xF0\x9F\x98\x80");
    REPAIRS("\xF0", BAD);
    REPAIRS("\x80\xBF", BAD BAD);
    REPAIRS("\xC0\x80\xC1\xBF", BAD BAD BAD BAD); // overlong
    REPAIRS("\xE0\x9F\xBF", BAD BAD BAD);         // overlong
    REPAIRS("\xED\xA0\x80", BAD BAD BAD);         // half of a pair
    REPAIRS("\xF4\x90\x80\x80", BAD BAD BAD BAD); // beyond U+10FFFF
    REPAIRS("\xF5\xFF", BAD BAD);
    REPAIRS("\xE2\x82\xE2\x82\xAC", BAD "\xE2\x82\xAC");
    REPAIRS("\xF1\x80\x80\xE1\x80\xC2\x62", BAD BAD BAD "b"); // the standard's example
}

TEST(a_beginning_is_kept_for_more) {
    struct text out = {0};
    CHECK_INT(utf8_repair("ab\xF0\x9F\x98", 5, true, &out), 2);
    CHECK_STR(text_str(&out), "ab");
    CHECK_INT(utf8_repair("\xF0\x9F\x98\x80", 4, true, &out), 4);
    CHECK_STR(text_str(&out), "ab\xF0\x9F\x98\x80");
    CHECK_INT(utf8_repair("\xF0\x9F\x41", 3, true, &out), 3); // more cannot make this whole
    CHECK_STR(text_str(&out), "ab\xF0\x9F\x98\x80" BAD "A");
    text_free(&out);
}

TEST_MAIN(CASE(what_is_whole_stays), CASE(what_is_cut_or_stray_is_replaced), CASE(a_beginning_is_kept_for_more))
