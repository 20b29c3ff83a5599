#!/usr/bin/env python3
"""Make the "orders" data set: short customer mails -> one nested JSON object.

    generate.py              rewrite train.jsonl and heldout.jsonl beside this file
    generate.py --check      exit 1 unless both files equal what would be written
    generate.py --stats      print counts (no file is touched)
    generate.py --dev FILE   write the third pool, for tuning, to FILE

Only the standard library is used, and of it only random.Random(seed).random(),
whose values are the same on every machine and in every Python 3.

The three splits have pools of their own: names, cities, dates, (product,
quantity) pairs and sentence wordings.  `verify` asserts, on the finished rows
and on the pools, that nothing of this occurs in two splits; every way of
running this program goes through it.
"""

import argparse
import json
import os
import random
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SYSTEM = "JSON: type, customer, items, date, priority."
ROWS = {"train": 400, "heldout": 64, "dev": 128}
SEED = {"train": 1, "heldout": 2, "dev": 3}
MAX_SHARED_RUN = 4  # longest run of wording words that two splits may share

# --------------------------------------------------------------------------
# Notation shared by all splits: number words, month names, colours.

NUMBERS = ("zero one two three four five six seven eight nine ten eleven "
           "twelve").split()
MONTHS = ("January February March April May June July August September "
          "October November December").split()
COLORS = ["red", "blue", "green", "black", "white", "grey", "yellow"]

# --------------------------------------------------------------------------
# Names, cities and products.  Of each list the places 0, 6, 12 ... go to
# heldout, 1, 7, 13 ... to dev and the rest to train.  Only the products in
# SHARED may occur in every split.

def entries(text):
    return [" ".join(x.split()) for x in text.split(";")]


FIRST = entries("""
    Steve; Julie; Grace; Sunil; Fred; Adam; Rosa; Kyle; Uwe; Eleanor;
    Monica; Richard; Alice; Klaus; Roy; Clara; Francis; Mario; Walter;
    Stephen; Rolf; Aisha; Petra; Caroline; Anya; Karin; Camille; Ernest;
    Edith; Stuart; Julia; Isabel; Steven; Donna; Edgar; Jackie; Elise; Jack;
    Matt; Chris; Ada; Linda; Anton; Lena; Hannah; Jean; Maria; Tomas; Karen;
    Christine; Janet; Roger; Miguel; Pavel; Frank; Kofi; Kenneth; Sven;
    Hiro; Simon; Sean; Emma; Mike; Nancy; Timothy; Rebecca; Joshua; Bill;
    Manuel; Fatima; Judy; Pierre; Fritz; Luis; Jerry; Sara; Rita; Nadia;
    Margaret; Jürgen; Leo; Joan; Kenji; Ralph; Akira; Samuel; Ravi; Nina;
    Victor; Harold; Henrik; Katherine; Salma; Tamara; Ron; Antoine; Betty;
    Norman; Harry; Michael; Lucia; Alan; Arthur; Herbert; Ethan; Dave; Greg;
    Sam; Laura; Lewis; Molly; Howard; Ella; Sharon; José; Anna; Max; Raj;
    Todd; Owen; Charlotte; Doug; Maya; Sandra; Keiko; Peter; Martin; Mei;
    Joseph; Martha; Thomas; Evan; Stefan; Shane; Marie; Travis; Carl; Amy;
    Noah; Jane; Raymond; Zara; Mia; Ahmed; Theresa; Hana; Jill; Leslie;
    Elizabeth; Zoë; Lisa; Carol; John; Bob; Alison; Larry; Jonas; Linh; Rob;
    Vanessa; Judith; Leonard; Jordan; Angela; Jim; Charles; Christian; Mark;
    Marta; Minh; Ted; Logan; Bernard; Emil; Brian; Yuki; Andre; Igor; Jana;
    Paul; Debra; Jason; Boris; Deborah; Omar; Tom; Xavier; Ian; Marco;
    Teresa; Marion; Heidi; Leila; Ruth; Randy; Colin; Ben; Paula; Marcus;
    Karl; Liam; Keith; Craig; Fiona; Monika; Nick; Benjamin; Michelle;
    Dennis; Francisco; Robert; Louise; Philip; Tanya; Kevin; George;
    Valerie; Gerald; Ellen; Terry; Johanna; Diego; Olga; Lori; Gary; David;
    Heather; Susan; Jacob; Sally; Denise; Diana; Nora; Lucas; James; Rachel;
    Justin; Melissa; William; Alex; Helen; Nicole; Scott; Catherine; Deepa;
    Carlos; Hans; Dan; Patrick; Andy; Samantha; Anil; Kate; Søren; Kurt;
    Pablo; Jacques; Ivan; Jonathan; Meera; Nathan; Lydia; Irene; Hugh;
    Margot; Noel; Amelia; Dylan; Daniel; Ingrid; Oscar; Tim; René; Vera;
    Emily; Bruce; Anita; Eva; Wayne; Jeff; Tony; Yuri; Eric; Barbara; Erik;
    Neil; Don; Ryan; Albert""")

LAST = entries("""
    Wang; Greco; Krause; Dunn; Bennett; Harris; Petrov; Lund; Gordon; Böhm;
    Parker; Chen; Sullivan; Lawson; Bauer; Berry; Fischer; Dubois; Mitchell;
    Suzuki; Berg; Anderson; Mehta; Bach; Jansen; Shaw; Bradley; Kennedy;
    Phillips; Doyle; Payne; Collins; Robinson; Fraser; Pierce; Miller;
    Lehmann; Peters; Perry; Schmidt; Holmes; Greene; Delgado; Kelly;
    Sanders; Carter; Thompson; Bryant; Powell; Meyer; Willis; Leroy; Patel;
    Sims; Lang; Khan; Andrews; Rahman; Romero; Reid; Singh; Dixon; Duncan;
    Mason; Bakker; Harper; Maier; Björk; Stewart; Nielsen; Stone; Campbell;
    Edwards; Olsen; Hudson; Reddy; Arnold; Ricci; Wolf; Marino; Hughes;
    Castro; Lopez; Nowak; Huang; Braun; Keller; Zhang; Wagner; Schulz;
    Carroll; Elliott; Laurent; Franklin; Schneider; Burns; Tanaka; Ivanov;
    Gardner; Snyder; Gupta; Vargas; Chavez; Aziz; Tran; Kurz; Ali; Fontana;
    Simmons; Sharma; Jensen; Garcia; Barnes; Silva; Ferguson; Knight;
    Carpenter; Perkins; Park; Hayes; Santos; Strand; Griffin; Hicks; Brandt;
    Riley; Foster; Hassan; Rossi; Novak; Larsen; Gutierrez; Simpson; Turner;
    Fox; Weber; Evans; Navarro; Müller; Costa; Nelson; Spencer; Kim; Clarke;
    Hunter; Walsh; Lambert; Moreau; Sato; Ross; Pereira; Weaver; Kruger;
    Hagen; Crawford; Murphy; Nguyen; Hansen; Butler; Warren; Hart;
    Armstrong; Smit; Conti; Morrison; Baker; Holm; Gallo; Richter; Brown;
    Cooper; Wells; Taylor; Gibson; Diallo; Vogel; Graham; Torres; Ferrari;
    Wilson; Watkins; Hoffman; Hamilton""")

CITIES = entries("""
    Waco; Corfu; La Paz; Iron Mountain; Brno; Camden; Cardiff; Tokyo;
    Big Spring; Seoul; Kingston; Pune; Calgary; New Delhi; Reno; Zürich;
    Bolton; Round Rock; Porto; Geneva; Ghent; Lille; Cleveland; Tampa;
    Venice; Princeton; Utrecht; Detroit; Milwaukee; Warwick; Portland;
    Cambridge; Galway; Little Rock; Kiel; Akron; High Point; Windsor;
    Hanover; Manila; Riga; Madison; Halifax; Genoa; Victoria; Athens;
    Moscow; Leeds; Pisa; Tel Aviv; Chicago; Nantes; Le Havre; Dover; Lagos;
    Weimar; Denver; Raleigh; Oxford; Glasgow; Newport; Lincoln; Coventry;
    Bari; Lima; Nottingham; Malmö; San Jose; Mumbai; Brest; North Bay;
    Lake Forest; Cape Town; Maputo; Verona; Dayton; Toronto; Avignon;
    South Bend; Peoria; Linz; Dallas; Salt Lake City; Philadelphia; Quebec;
    Jena; Battle Creek; Amman; Essen; Miami; Mainz; Salem; Richmond; Leiden;
    Hong Kong; Cincinnati; Istanbul; Nairobi; Berlin; London; Boston;
    Colombo; Kiev; Omaha; Colorado Springs; Walnut Creek; Salzburg;
    Budapest; Fargo; Palermo; Trier; Melbourne; Rabat; Busan; Rome;
    Edinburgh; Virginia Beach; Newark; New Orleans; Jackson; Frankfurt;
    Metz; Exeter; Tijuana; Osaka; Amsterdam; Graz; Columbus; Vancouver;
    Las Vegas; West Point; Wellington; Rock Hill; Fort Worth; Cairo;
    Belgrade; Bonn; Recife; Singapore; Cologne; Suva; Mexico City; Bern;
    Long Beach; Paris; Leipzig; El Paso; Sheffield; Varna; Southampton;
    Reims; Grand Rapids; Panama City; Auckland; Bologna; Port Louis; Oslo;
    Orlando; Great Falls; New Haven; Chester; Minneapolis; Hamburg; Memphis;
    Charleston; Doha; Key West; Norwich; Turin; Basel; Lyon; Arnhem; Madrid;
    Carlisle; Brussels; Syracuse; Vienna; Buenos Aires; Hull; Boise; Malaga;
    Stockholm; Grand Forks; Cork; Milan; Algiers; Nara; Caen; New York;
    Accra; Perth; Kobe; Mesa; Seattle; Naples; Beijing; Hot Springs; Muscat;
    Honolulu; Boulder; Augusta; Surat; Aspen; Montreal; Durban; Seville;
    Haifa; Canberra; Darwin; Birmingham""")

SHARED = entries("""
    chair; radio; bag; bed; table lamp; hand towel; water bottle;
    book shelf; key ring; hat""")

PRODUCTS = entries("""
    room divider; milk jug; watch; photo album; oil lamp; frame; shield;
    plug; phone case; roll; brush; power bank; sugar bowl; cap; sock; seat;
    flower pot; boot; tank; air pump; light bulb; arm chair; motor; wheel;
    play mat; scale; picture frame; map; work bench; wall clock; clock;
    paper bag; face mask; side table; memory card; power cable; fish tank;
    belt; pipe; flower; bath mat; sensor; calendar; board game; screen; pot;
    button; lock; tub; chain; watering can; plate; sun hat; ice tray;
    wallet; egg timer; bell; key; cup; rack; lid; marker; rain coat;
    head lamp; ring; coat; filter; oven; jar; snow shovel; kit; board;
    box fan; door mat; dog bed; tool box; night light; hand saw; pack;
    bucket; pen; cat toy; name tag; label; coat hook; comb; floor lamp;
    hair brush; fire alarm; tool belt; picture; panel; card; wall lamp; rug;
    price tag; office chair; rice cooker; egg cup; gas stove; wire;
    body pillow; mouse pad; robot; socket; router; air filter; pen holder;
    foot stool; fan; water filter; camera; sheet; monitor; pan; bolt;
    folder; flag; jug; bird cage; fruit bowl; hair dryer; stamp; ball;
    table; cutting board; shirt; bench; printer""")

PLURALS = {"bench": "benches", "book shelf": "book shelves",
           "brush": "brushes", "hair brush": "hair brushes",
           "tool box": "tool boxes", "watch": "watches",
           "work bench": "work benches"}


def share(pool):
    return {"heldout": pool[0::6], "dev": pool[1::6],
            "train": [x for i, x in enumerate(pool) if i % 6 > 1]}


FIRST, LAST, CITIES, OWN = map(share, (FIRST, LAST, CITIES, PRODUCTS))
# A split may use a quantity with a shared product only if (place of the
# product in SHARED + quantity) % 5 is among these.
RESIDUES = {"train": (0, 1, 2), "dev": (3,), "heldout": (4,)}
YEARS = (2025, 2026, 2027)
# (day of the month + month) % 5 decides which split may use a date.
DATE_RESIDUES = {"train": (0, 1, 2), "dev": (3,), "heldout": (4,)}

# --------------------------------------------------------------------------
# Wordings.  "fix" are the corrections: {a} is what is taken back, {b} counts.
# "listfix" are those behind a line of a list.

WORDS = {}
WORDS["train"] = {
    "greet": ["Hi,", "Hello,", "Dear team,", "Hi there,", "Hello shop team,"],
    "chat": [
        "The last parcel arrived in perfect shape.",
        "My kids love your shop.",
        "It has been raining here all week.",
        "Your catalogue is beautiful.",
        "We are painting the office at the moment.",
        "My neighbour told me about you.",
        "I tried to call but nobody answered.",
        "Your website was slow today.",
        "I hope you are well.",
        "We just came back from holiday.",
        "The dog ate my old receipt.",
        "Our new kitchen is almost finished.",
        "I have been a customer for years.",
        "Parking near you is terrible.",
        "My sister also buys from you.",
        "The invoice can go by mail.",
        "Your coffee corner is lovely.",
        "Our team grew a lot.",
        "I told your colleague on the phone.",
        "We own a small bar.",
        "We are a team of five.",
        "I bought something here three times already.",
        "Our shop turned nine this month.",
        "We have two dogs.",
        "My birthday was great.",
        "Your parking lot has six spaces.",
        "Four of my friends shop with you.",
        "I called twice last week.",
        "My office is on floor ten.",
        "The new app works well.",
        "I saw you at the market.",
        "It is my first mail to you.",
        "We like your blog.",
        "My father worked for you.",
        "Please say hi to the boss.",
        "The box was easy to open.",
    ],
    "intro_nc": ["{name} ({city}) here.", "{name} ({city}) writing.",
                 "{name} from {city} here.", "{name} speaking ({city})."],
    "intro_n": ["{name} here.", "{name} speaking.", "This is {name}."],
    "sig_nc": ["Best,\n{name}\n{city}", "Thanks,\n{name}\n{city}",
               "Thanks,\n{name} ({city})", "Kind regards,\n{name}\n{city}",
               "Yours,\n{name} ({city})", "Sent by {name}, {city}"],
    "sig_n": ["Thanks,\n{name}", "Best,\n{name}", "Yours,\n{name}",
              "Kind regards,\n{name}", "Sent by {name}"],
    "city": ["We are in {city}.", "I live in {city}.", "City: {city}.",
             "Our shop is in {city}."],
    "high": ["It is urgent.", "This is urgent!", "Urgent, please.",
             "As soon as possible, please.", "I need this urgently.",
             "We want this as soon as possible.", "Quick, it is so urgent!",
             "Be here as soon as possible!"],
    "low": ["There is no rush.", "No rush here.", "Absolutely no rush!",
            "Please do not rush.", "I do not want you to rush.",
            "No reason to rush it.", "It can wait.", "We can wait.",
            "I can wait for it.", "The matter can wait."],
    "fix": ["{a} - no, make that {b} -", "{a}, sorry, {b}", "{a} (no, {b})",
            "{a} or rather {b}", "{a} - oh, {b} -", "{a} (I meant {b})",
            "{a}, no, {b}", "{a} - make it {b} -"],
    "listfix": ["(no, {b})", "(sorry, {b})", "(make that {b})",
                "(I meant {b})", "(or rather {b})"],
    "ask": {
        "order": [
            "Please send me {items}.", "I would like to order {items}.",
            "We need {items}.", "Can I get {items}?", "I want to buy {items}.",
            "Could you ship {items}?", "Our office needs {items}.",
            "Put me down for {items}.",
            "Please deliver {items} by {date}.",
            "We need {items} on {date}.",
            "I'd like {items}, to arrive on {date}.",
            "For {date} we need {items}.",
            "Please send {items} to {city}.",
            "Could you ship {items} to our shop in {city}?",
            "Please deliver {items} to {city} by {date}.",
            "On {date} we need {items} in {city}."],
        "return": [
            "I want to return {items}.", "I am sending back {items}.",
            "Please take back {items}.", "We would like to return {items}.",
            "You get {items} back from me.",
            "Please collect {items} for return on {date}.",
            "I will send back {items} on {date}.",
            "We want to return {items} from {city}."],
        "cancel": [
            "Please cancel {items}.", "I have to cancel {items}.",
            "Cancel {items} for me, please.",
            "I no longer need {items}, please cancel.",
            "Please cancel the order of {date}: {items}.",
            "I ordered {items} on {date}, please cancel.",
            "Please cancel {items} for our shop in {city}."],
        "repair": [
            "Please repair {items}.", "I have {items} to repair.",
            "Could you repair {items} for me?",
            "I'd like to have {items} repaired.",
            "I will bring {items} for repair on {date}.",
            "From {date} on, {items} can be repaired.",
            "Please pick up {items} for repair in {city}."],
    },
    "list": {
        "order": ["Please send:{list}", "My order:{list}",
                  "I would like to order:{list}", "Things we need:{list}"],
        "return": ["I want to return:{list}", "Return from me:{list}"],
        "cancel": ["Please cancel:{list}", "I must cancel:{list}"],
        "repair": ["Please repair:{list}", "Items for repair:{list}"],
    },
    "date": {
        "order": ["Delivery date: {date}.", "It should arrive on {date}.",
                  "Please deliver by {date}.", "I need it on {date}."],
        "return": ["Please collect on {date}.", "Pick-up on {date}."],
        "cancel": ["I ordered on {date}.", "Order date: {date}."],
        "repair": ["I can come on {date}.", "Drop-off on {date}."],
    },
}
WORDS["dev"] = {
    "greet": ["Good afternoon,", "Dear all,", "Hello everyone,", "Greetings,"],
    "chat": [
        "Your newsletter always makes me smile.",
        "The box last time was a bit wet.",
        "My boss is a big fan of yours.",
        "We had snow this morning.",
        "I am new in this office.",
        "Your prices are fair.",
        "The music on your hotline is awful.",
        "I found you in a magazine.",
        "Our school has eight classes.",
        "There are four of us in the flat.",
        "Everybody here likes your stuff.",
        "It was nice to meet you.",
    ],
    "intro_nc": ["{name} ({city}) again.", "{name} ({city}) asking.",
                 "It is {name} again, from {city}."],
    "intro_n": ["{name} again.", "{name} asking.", "It is me, {name}."],
    "sig_nc": ["Cheers,\n{name}\n{city}", "Sincerely,\n{name}\n{city}",
               "Many thanks,\n{name} ({city})", "Cheers, {name} in {city}"],
    "sig_n": ["Cheers,\n{name}", "Sincerely,\n{name}",
              "Many thanks,\n{name}", "Cheers, {name}"],
    "city": ["You find us in {city}.", "My home is {city}.", "Place: {city}."],
    "high": ["My request is urgent.", "Urgent request!",
             "Do it as soon as possible.", "I am waiting urgently."],
    "low": ["I am in no rush.", "No need to rush.", "You can wait with it.",
            "This really can wait."],
    "fix": ["{a}, pardon, {b}", "{a} - actually {b} -", "{a} (oops, {b})",
            "{a}, well, {b}"],
    "listfix": ["(oops, {b})", "(actually {b})"],
    "ask": {
        "order": [
            "I need {items}.", "Please ship {items} to me.",
            "We want to order {items}.", "May I have {items}?",
            "Send {items}, please.",
            "Please bring {items} on {date}.",
            "I order {items} for {date}.",
            "Ship {items} to {city}, please.",
            "We need {items} in {city} by {date}."],
        "return": [
            "I am returning {items}.", "We are going to send back {items}.",
            "Please accept {items} as a return.",
            "On {date} I will return {items}.",
            "My return from {city}: {items}."],
        "cancel": [
            "We want to cancel {items}.", "Can you cancel {items}?",
            "Cancel {items}, ordered on {date}.",
            "Our shop in {city} has to cancel {items}."],
        "repair": [
            "Can you repair {items}?", "We need a repair of {items}.",
            "On {date} I'll bring {items} for repair.",
            "Our shop in {city} has {items} to repair."],
    },
    "list": {
        "order": ["I need these:{list}", "We order:{list}"],
        "return": ["We are returning:{list}"],
        "cancel": ["Cancel these, please:{list}"],
        "repair": ["These need a repair:{list}"],
    },
    "date": {
        "order": ["Deliver on {date}, please.", "We expect it by {date}."],
        "return": ["You can collect it on {date}."],
        "cancel": ["The order is from {date}."],
        "repair": ["I'll drop it off on {date}."],
    },
}
WORDS["heldout"] = {
    "greet": ["Good morning,", "Hey,", "Dear sir or madam,", "Good day,"],
    "chat": [
        "The weather is lovely over here.",
        "A friend recommended your store to us.",
        "Thank you for your quick help.",
        "Our garden party was a success.",
        "I could not find the form online.",
        "Your driver was very kind.",
        "My husband says hello.",
        "We moved the studio upstairs.",
        "The children are excited.",
        "Pardon me for writing so late.",
        "We run a hotel with twelve rooms.",
        "I have three cats at home.",
        "Your new logo looks nice.",
        "I am typing this on the train.",
        "The phone line was busy again.",
    ],
    "intro_nc": ["{name} ({city}) is my name.", "{name} ({city}) with a note.",
                 "My name is {name} and I am from {city}."],
    "intro_n": ["{name} is my name.", "{name} with a note.", "Here is {name}."],
    "sig_nc": ["Regards,\n{name}\n{city}", "Thank you,\n{name}\n{city}",
               "All the best,\n{name} ({city})", "Regards, {name}, {city}"],
    "sig_n": ["Regards,\n{name}", "Thank you,\n{name}",
              "All the best,\n{name}", "Regards, {name}"],
    "city": ["Our home is in {city}.", "We live in {city}.",
             "Town: {city}."],
    "high": ["Please treat this as urgent.", "Very urgent!",
             "Please react as soon as possible.", "We need help urgently."],
    "low": ["No rush from our side.", "You need not rush.",
            "All of that can wait.", "My family can wait."],
    "fix": ["{a} - hm, better {b} -", "{a}, I mean {b}",
            "{a} (correction: {b})", "{a}, oh no, {b}"],
    "listfix": ["(hm, {b})", "(I mean {b})"],
    "ask": {
        "order": [
            "Please send us {items}.", "I'd like to order {items}.",
            "We would like to buy {items}.", "Could I have {items}?",
            "My family needs {items}.",
            "Can you deliver {items} on {date}?",
            "By {date} I need {items}.",
            "Please ship {items} to {city}.",
            "Kindly deliver {items} by {date} to {city}."],
        "return": [
            "We want to send back {items}.", "I would like to return {items}.",
            "I have {items} to return.",
            "We will return {items} on {date}.",
            "Please take {items} back from {city}."],
        "cancel": [
            "I want to cancel {items}.", "You can cancel {items}.",
            "Please cancel {items}, I ordered on {date}.",
            "From {city} we have to cancel {items}."],
        "repair": [
            "We would like you to repair {items}.",
            "There are {items} to repair.",
            "Can I bring {items} for repair on {date}?",
            "Here in {city} we have {items} to repair."],
    },
    "list": {
        "order": ["Please deliver:{list}", "We would like to buy:{list}"],
        "return": ["We want to send back:{list}"],
        "cancel": ["I want to cancel:{list}"],
        "repair": ["Could you repair:{list}"],
    },
    "date": {
        "order": ["We need it by {date}.", "Let it arrive on {date}."],
        "return": ["Collect it on {date}, please."],
        "cancel": ["It was ordered on {date}."],
        "repair": ["We can bring it on {date}."],
    },
}

# --------------------------------------------------------------------------
# How often what happens.

TYPES = (("order", 23), ("return", 10), ("cancel", 9), ("repair", 8))
COUNTS = ((1, 31), (2, 15), (3, 4))
DATED = ((True, 20), (False, 30))
PRIORITY = (("normal", 27), ("high", 13), ("low", 10))
# Corrections are what is hardest to learn: training rows have more of them.
FIX = {"train": (("none", 26), ("qty", 11), ("date", 4), ("city", 4), ("color", 5)),
       "dev": (("none", 36), ("qty", 8), ("date", 2), ("city", 2), ("color", 2))}
FIX["heldout"] = FIX["dev"]
SIZE = (("one", 6), ("small", 37), ("large", 7))
P_SHARED = {"train": 0.2, "dev": 0.4, "heldout": 0.4}
P_GREET = 0.3
P_CHAT = 0.3
P_COLOR = 0.22
P_LIST = 0.3           # only for two or three items


class Dice:
    """Choices drawn from one seeded generator; pools are dealt like cards, so
    that each entry is used about equally often."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.decks = {}

    def below(self, n):
        return int(self.rng.random() * n)

    def chance(self, p):
        return self.rng.random() < p

    def pick(self, seq):
        return seq[self.below(len(seq))]

    def weighted(self, table):
        return self.deal([value for value, n in table for _ in range(n)])

    def deal(self, pool):
        deck = self.decks.setdefault(tuple(pool), [])
        if not deck:
            deck.extend(pool)
            for i in range(len(deck) - 1, 0, -1):
                j = self.below(i + 1)
                deck[i], deck[j] = deck[j], deck[i]
        return deck.pop()


def put(template, **values):
    """Fill a template with (text, mask) pairs; gives a (text, mask) pair.  The
    mask is the mail with every filled-in value blanked out to its slot."""
    text = mask = template
    for key, (t, m) in values.items():
        text = text.replace("{%s}" % key, t)
        mask = mask.replace("{%s}" % key, m)
    return text, mask


def plural(product):
    return PLURALS.get(product, product + "s")


def write_date(dice, day):
    y, m, d = day
    month = MONTHS[m - 1]
    nth = "%d%s" % (d, "th" if 11 <= d <= 13 else
                    {1: "st", 2: "nd", 3: "rd"}.get(d % 10, "th"))
    forms = {"d month y": "%d %s %d" % (d, month, y),
             "month dth, y": "%s %s, %d" % (month, nth, y),
             "dd.mm.y": "%02d.%02d.%d" % (d, m, y),
             "y-mm-dd": "%d-%02d-%02d" % (y, m, d)}
    return forms[dice.deal(forms)], "{date}"


def days(split):
    lengths = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    return [(y, m, d) for y in YEARS for m in range(1, 13)
            for d in range(1, lengths[m - 1] + 1)
            if (d + m) % 5 in DATE_RESIDUES[split]]


def quantity(dice, split, product, other=None):
    """A quantity that this split may use with this product; `other` is the
    quantity which it corrects, so it must differ and be of the same kind."""
    while True:
        kind = dice.weighted(SIZE)
        n = {"one": 1, "small": 2 + dice.below(11),
             "large": 13 + dice.below(36)}[kind]
        ours = product not in SHARED or \
            (SHARED.index(product) + n) % 5 in RESIDUES[split]
        if ours and n != other and (other is None or (n > 12) == (other > 12)):
            return n


def a_or_an(word):
    return "an" if word[0] in "aeiou" else "a"


class Item:
    def __init__(self, dice, split, product):
        self.product = product
        self.color = dice.deal(COLORS) if dice.chance(P_COLOR) else None
        self.qty = quantity(dice, split, product)
        self.old_qty = self.old_color = None
        self.words = self.qty <= 12 and dice.chance(0.75)

    def key(self):
        return (self.color + " " if self.color else "") + self.product

    def number(self, n):
        return (NUMBERS[n] if self.words else str(n)), "{n}"

    def noun(self):
        return (self.product if self.qty == 1 else plural(self.product)), "{product}"

    def phrase(self, dice, words):
        """The item in running text."""
        first = self.color or self.product
        if self.old_qty is not None:
            n = put(dice.deal(words["fix"]), a=self.number(self.old_qty),
                    b=self.number(self.qty))
        elif self.qty == 1 and self.words and dice.chance(0.6):
            n = a_or_an(first), "{n}"
        else:
            n = self.number(self.qty)
        if self.color is None:
            return put("{n} {x}", n=n, x=self.noun())
        c = self.color, "{color}"
        if self.old_color is not None:
            c = put(dice.deal(words["fix"]), a=(self.old_color, "{color}"), b=c)
        return put("{n} {c} {x}", n=n, c=c, x=self.noun())

    def line(self, dice, words, form):
        """The item on a line of its own."""
        n = str(self.qty if self.old_qty is None else self.old_qty), "{n}"
        x = self.key(), "{product}"
        many = ((self.color + " " if self.color else "") + self.noun()[0],
                "{product}")
        if form == "plain" and self.words:
            n = self.number(int(n[0]))
        text = put({"times": "\n- {n} x {x}", "colon": "\n- {x}: {n}",
                    "plain": "\n* {n} {x}"}[form], n=n,
                   x=many if form == "plain" else x)
        if self.old_qty is not None:
            back = put(dice.deal(words["listfix"]), b=self.number(self.qty))
            text = text[0] + " " + back[0], text[1] + " " + back[1]
        return text


def join(parts, dice):
    """one / one and two / one, two and three"""
    text, mask = parts[-1]
    link = dice.pick((" and ", " and ", " plus ")) if len(parts) > 1 else ""
    for k, (t, m) in enumerate(reversed(parts[:-1])):
        sep = link if k == 0 else ", "
        text, mask = t + sep + text, m + sep + mask
    return text, mask


def tidy(text):
    """A closing dash before punctuation goes: "three -." -> "three."""
    return re.sub(r" -(?=[.,:?!\n]|$)", "", text)


def capital(pair):
    text, mask = pair
    return text[:1].upper() + text[1:], mask[:1].upper() + mask[1:]


def make_row(dice, split):
    words = WORDS[split]
    kind = dice.weighted(TYPES)
    name = dice.deal(FIRST[split]) + " " + dice.deal(LAST[split])
    city = dice.deal(CITIES[split])
    count = dice.weighted(COUNTS)
    items = []
    while len(items) < count:
        pool = SHARED if dice.chance(P_SHARED[split]) else OWN[split]
        product = dice.deal(pool)
        if all(product not in i.product and i.product not in product
               for i in items):
            items.append(Item(dice, split, product))
    day = dice.deal(DAYS[split]) if dice.weighted(DATED) else None
    priority = dice.weighted(PRIORITY)
    listed = count > 1 and dice.chance(P_LIST)

    fix = dice.weighted(FIX[split])
    if fix == "date" and day is None or fix == "color" and listed:
        fix = "qty"
    if fix == "qty":
        item = dice.pick(items)
        item.old_qty = quantity(dice, split, item.product, item.qty)
    if fix == "color":
        item = dice.pick(items)
        item.old_color = dice.deal(COLORS)
        item.color = dice.deal(COLORS)
        while item.color == item.old_color:
            item.color = dice.deal(COLORS)

    place = city, "{city}"
    if fix == "city":
        other = dice.deal(CITIES[split])
        while other == city:
            other = dice.deal(CITIES[split])
        place = put(dice.deal(words["fix"]), a=(other, "{city}"), b=place)
    when = None
    if day:
        when = write_date(dice, day)
        if fix == "date":
            wrong = dice.deal(DAYS[split])
            when = put(dice.deal(words["fix"]), a=write_date(dice, wrong), b=when)

    # The sentences.
    who = name, "{name}"
    need_city, need_date = True, day is not None
    if listed:
        form = dice.deal(("times", "colon", "plain"))
        lines = [i.line(dice, words, form) for i in items]
        text = put(dice.deal(words["list"][kind]),
                   list=("".join(t for t, _ in lines),
                         "".join(m for _, m in lines)))
    else:
        template = dice.deal(words["ask"][kind])
        while "{date}" in template and not need_date:
            template = dice.deal(words["ask"][kind])
        phrases = [i.phrase(dice, words) for i in items]
        values = {"items": join(phrases, dice), "city": place}
        if when:
            values["date"] = when
        text = put(template, **values)
        need_city = "{city}" not in template
        need_date = need_date and "{date}" not in template
    body = [text]
    if need_date:
        body.append(put(dice.deal(words["date"][kind]), date=when))
    if priority != "normal":
        note = put(dice.deal(words[priority]))
        body.insert(0 if dice.chance(0.2) else len(body), note)

    opening, closing = [], None
    if dice.chance(P_GREET):
        opening.append(put(dice.deal(words["greet"])))
    sign = dice.chance(0.7)
    # a corrected city is written in a sentence of its own, not in a signature
    city_apart = need_city and (fix == "city" or dice.chance(0.12))
    if need_city and not city_apart:
        pool, fill = "nc", {"name": who, "city": place}
    else:
        pool, fill = "n", {"name": who}
    if sign:
        closing = put(dice.deal(words["sig_" + pool]), **fill)
    else:
        opening.append(put(dice.deal(words["intro_" + pool]), **fill))
    if city_apart:
        body.append(put(dice.deal(words["city"]), city=place))
    if dice.chance(P_CHAT):
        chat = put(dice.deal(words["chat"]))
        if dice.chance(0.6):
            opening.append(chat)
        else:
            body.append(chat)
    parts = opening + [capital(p) for p in body]
    text, mask = parts[0]
    for (t, m), before in zip(parts[1:], parts):
        # a list ends with a line break
        sep = "\n" if "\n" in before[0] or (
            before is parts[0] and opening and before[0].endswith(",")
            and (t.startswith(name) or dice.chance(0.4))) else " "
        text, mask = text + sep + t, mask + sep + m
    if closing:
        sep = "\n" if "\n" in parts[-1][0] or dice.chance(0.6) else " "
        text, mask = text + sep + closing[0], mask + sep + closing[1]

    answer = {
        "type": kind,
        "customer": {"name": name, "city": city},
        "items": {i.key(): i.qty for i in items},
        "date": "%d-%02d-%02d" % day if day else None,
        "priority": priority,
    }
    return tidy(text), tidy(mask), answer


DAYS = {split: days(split) for split in ROWS}


def make_split(split):
    dice = Dice(SEED[split])
    rows = []
    while len(rows) < ROWS[split]:
        rows.append(make_row(dice, split))
    return rows


def to_jsonl(rows):
    out = []
    for mail, _, answer in rows:
        messages = [{"role": "system", "content": SYSTEM},
                    {"role": "user", "content": mail},
                    {"role": "assistant",
                     "content": json.dumps(answer, ensure_ascii=False)}]
        out.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return "".join(out)


# --------------------------------------------------------------------------
# What must hold.

def templates(node):
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from templates(value)
    else:
        for value in node:
            yield from templates(value)


def sentences(mask):
    """The wordings in a masked mail or template: lower case, one slot sign for
    each kind of value, items as one slot, no punctuation.  Pieces that hold
    no word, only slots and item notation, are left out."""
    s = re.sub(r"\n[-*] [^\n]*", " {items}\n", mask.lower()).replace(",\n", ", ")
    s = s.replace("{list}", " {items}")
    s = re.sub(r"\{(n|color|product|a|b|p)\}", "{items}", s)
    out = set()
    for piece in re.split(r"[.!?]+(?:\s|$)|\n", s):
        piece = " ".join(re.findall(r"\{\w+\}|[\w']+", piece))
        piece = re.sub(r"(\{items\})( (and |plus )?\{items\})+", r"\1", piece)
        if re.sub(r"\{\w+\}", "", piece).strip():
            out.add(piece)
    return out


def runs(mask, n):
    """All runs of n words between the slots of a masked mail."""
    out = set()
    for piece in re.split(r"\{\w+\}|[.!?:\n]", mask.lower()):
        w = re.findall(r"[\w']+", piece)
        out.update(tuple(w[i:i + n]) for i in range(len(w) - n + 1))
    return out


def dates_in(mail):
    """All dates in a mail, whatever way they are written, in ISO form."""
    found = [(y, m, d) for y, m, d in re.findall(r"(\d{4})-(\d\d)-(\d\d)", mail)]
    found += [(y, m, d) for d, m, y in re.findall(r"(\d\d)\.(\d\d)\.(\d{4})", mail)]
    names = "|".join(MONTHS)
    found += [(y, MONTHS.index(m) + 1, d) for d, m, y in
              re.findall(r"(\d+) (%s) (\d{4})" % names, mail)]
    found += [(y, MONTHS.index(m) + 1, d) for m, d, y in
              re.findall(r"(%s) (\d+)[a-z]*, (\d{4})" % names, mail)]
    return {"%d-%02d-%02d" % tuple(map(int, x)) for x in found}


def verify(splits):
    facts = {}
    for split, rows in splits.items():
        f = {k: set() for k in ("first name", "last name", "city", "date",
                                "product and quantity", "sentence", "mail",
                                "template without slots", "word run")}
        for mail, mask, a in rows:
            assert list(a) == ["type", "customer", "items", "date", "priority"]
            assert mail not in f["mail"], "twice in %s: %s" % (split, mail)
            f["mail"].add(mail)
            first, last = a["customer"]["name"].split(" ")
            f["first name"].add(first)
            f["last name"].add(last)
            f["city"].add(a["customer"]["city"])
            dates = dates_in(mail)  # also those which the mail takes back
            assert (a["date"] in dates) if a["date"] else not dates, mail
            f["date"] |= dates
            for key, n in a["items"].items():
                word, _, rest = key.partition(" ")
                f["product and quantity"].add((rest if word in COLORS else key, n))
            f["sentence"] |= sentences(mask)
            f["word run"] |= runs(mask, MAX_SHARED_RUN + 1)
        for t in templates(WORDS[split]):
            f["sentence"] |= sentences(t)
            f["template without slots"].add(
                " ".join(re.findall(r"[\w']+", re.sub(r"\{\w+\}", " ", t.lower()))))
            f["word run"] |= runs(t, MAX_SHARED_RUN + 1)
        facts[split] = f
    names = list(splits)
    for i, s in enumerate(names):
        for t in names[i + 1:]:
            for kind in facts[s]:
                both = facts[s][kind] & facts[t][kind]
                assert not both, "%s in %s and %s: %s" % (
                    kind, s, t, sorted(both)[:5])
    for s in names:
        mails = "\n".join(facts[s]["mail"])
        for t in names:
            if s == t:
                continue
            for value in FIRST[t] + LAST[t] + CITIES[t]:
                assert not re.search(r"\b%s\b" % re.escape(value), mails), \
                    "%s of %s in a mail of %s" % (value, t, s)
    old = {k for _, _, a in splits["train"] for k in base_products(a)}
    new = {k for _, _, a in splits["heldout"] for k in base_products(a)} - old
    assert len(new) >= 8, "too few unseen products"
    # the answer can be read off the mail
    for rows in splits.values():
        for mail, _, a in rows:
            assert a["customer"]["name"] in mail and a["customer"]["city"] in mail
            for product in base_products(a):
                assert product in mail or plural(product) in mail
    return facts


def base_products(answer):
    for key in answer["items"]:
        word, _, rest = key.partition(" ")
        yield rest if word in COLORS else key


def stats(splits, facts):
    for split, rows in splits.items():
        a = [r[2] for r in rows]
        masks = {re.sub(r"\n[-*] [^\n]*", "\n- item", m) for _, m, _ in rows}
        print("%s: %d rows, %d sentence wordings, %d whole-mail skeletons" % (
            split, len(rows), len(facts[split]["sentence"]), len(masks)))
        print("  types", {k: sum(x["type"] == k for x in a) for k, _ in TYPES},
              "priority", {k: sum(x["priority"] == k for x in a)
                           for k, _ in PRIORITY})
        print("  items", {k: sum(len(x["items"]) == k for x in a)
                          for k, _ in COUNTS},
              "dated", sum(x["date"] is not None for x in a))
        print("  products %d, first names %d, last names %d, cities %d" % (
            len({k for x in a for k in base_products(x)}),
            len(facts[split]["first name"]), len(facts[split]["last name"]),
            len(facts[split]["city"])))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--stats", action="store_true")
    parser.add_argument("--dev", metavar="FILE")
    args = parser.parse_args()
    splits = {split: make_split(split) for split in ROWS}
    facts = verify(splits)
    if args.stats:
        stats(splits, facts)
        return 0
    if args.dev:
        with open(args.dev, "w", encoding="utf-8", newline="\n") as f:
            f.write(to_jsonl(splits["dev"]))
        return 0
    bad = 0
    for split in ("train", "heldout"):
        path = os.path.join(HERE, split + ".jsonl")
        data = to_jsonl(splits[split]).encode("utf-8")
        if args.check:
            try:
                with open(path, "rb") as f:
                    same = f.read() == data
            except OSError:
                same = False
            print("%s: %s" % (split + ".jsonl", "ok" if same else "DIFFERS"))
            bad += not same
        else:
            with open(path, "wb") as f:
                f.write(data)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
