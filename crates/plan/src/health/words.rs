//! The meaning of the words that controllers choose for states, reasons and condition types, such as
//! `ImagePullFailed`, `HEALTH_WARN` or `in-progress`. Words are split into parts, so that words which are not in
//! the vocabulary are also understood.

use std::sync::LazyLock;

/// What a word says about an object, weakest first. If a text has several tones, the strongest one applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tone {
    /// The object is as it should be.
    Good,
    /// Somebody stopped the object on purpose.
    Stopped,
    /// The object is progressing.
    Moving,
    /// The object is not as it should be, but may recover: `NotReady`, `Unavailable`.
    Lacking,
    /// Something failed.
    Bad,
}

/// The parts of words with a known meaning. Each entry is a prefix, or, if it ends with a `.`, a whole part.
const VOCABULARY: [(Tone, &str); 5] = [
    (
        Tone::Bad,
        "abort backoff bad. broken. cannot conflict corrupt crash critical. dead. degrad denied deny err evict \
         exceed exception expired fail fatal fault forbid full. illegal inaccessible incompatible incorrect \
         insufficient invalid kill lost malformed misconfig mismatch missing noncompliant notfound oom orphan \
         panic red. refus reject stall stuck timed timeout unable unauth unexpected unhealth unreach \
         unrecover unresolv unschedul unsupport violat",
    ),
    (Tone::Lacking, "incomplete notready unavail unready"),
    (
        Tone::Moving,
        "delet init. inprogress partial pending progress queue requested requeue requir retry rollback rollout \
         starting. submitted terminat wait yellow",
    ),
    (
        Tone::Stopped,
        "disabled. hibernat pause pausing. stopped suspend",
    ),
    (
        Tone::Good,
        "accept active admitted alive applied approved attached available bound complet compliant configured \
         connected created deployed done. enabled establish exist finished green health initialized. installed \
         issued latest launched. normal ok. online. passed programmed provisioned ready reconciled registered \
         resolved running. scheduled. serving. stable. succe synced. synchronized. valid. validated.",
    ),
];

/// Parts that end in `-ing` but do not mean progress.
const STANDING: [&str; 11] = [
    "binding",
    "existing",
    "following",
    "hosting",
    "listening",
    "nothing",
    "routing",
    "setting",
    "string",
    "warning",
    "working",
];

struct Entry {
    word: &'static str,
    is_whole: bool,
    tone: Tone,
}

/// The vocabulary, by first letter.
static ENTRIES: LazyLock<[Vec<Entry>; 26]> = LazyLock::new(|| {
    let mut entries = [const { Vec::new() }; 26];
    for (tone, words) in VOCABULARY {
        for text in words.split_ascii_whitespace() {
            let word = text.trim_end_matches('.');
            let is_whole = word.len() < text.len();
            let letter = usize::from(word.as_bytes()[0] - b'a');
            entries[letter].push(Entry {
                word,
                is_whole,
                tone,
            });
        }
    }
    entries
});

/// Returns the tone of a text of one or several words; `None` if no part of it is known.
pub(super) fn tone(text: &str) -> Option<Tone> {
    // `up` is a state only if it is the whole text. Next to other words, it is a direction: `backing-up`, `ScalingUp`.
    if text.eq_ignore_ascii_case("up") {
        return Some(Tone::Good);
    }
    let mut strongest = None;
    let mut negated = false;
    let mut moves = false;
    let mut before = "";
    for part in parts(text) {
        let pair = |first: &str, second: &[&str]| {
            before.eq_ignore_ascii_case(first) && is_one_of(part, second)
        };
        let of_pair = if pair("not", &["allowed", "compliant", "found", "permitted"])
            || pair("non", &["compliant"])
            || pair("back", &["off"])
        {
            Some(Tone::Bad)
        } else if pair("out", &["of"]) {
            Some(Tone::Lacking)
        } else {
            None
        };
        before = part;
        if is_one_of(part, &["no", "non", "not", "never", "without"]) {
            negated = true;
            continue;
        }
        // A part that ends in -ing means progress, even if its beginning is listed as good (`Succeeding`). It is good
        // only if the vocabulary lists the whole part as good (`Running`).
        let is_moving = part.len() > 4 && ends_with(part, "ing");
        let Some(tone) = of_pair.or_else(|| tone_of_part(part, is_moving)) else {
            moves |= is_moving && !is_one_of(part, &STANDING);
            continue;
        };
        // "NoErrors" is good, "NotReady" is not good yet. A "not" applies to the next part with a meaning.
        let tone = match (negated, tone) {
            (false, tone) => tone,
            (true, _) if of_pair.is_some() => tone,
            (true, Tone::Good) => Tone::Lacking,
            (true, _) => Tone::Good,
        };
        negated = false;
        strongest = strongest.max(Some(tone));
    }
    strongest.or(moves.then_some(Tone::Moving))
}

fn tone_of_part(part: &str, is_moving: bool) -> Option<Tone> {
    let letter = part.as_bytes().first()?.to_ascii_lowercase();
    let entries = ENTRIES.get(usize::from(letter.checked_sub(b'a')?))?;
    let found = entries.iter().find(|entry| {
        if entry.is_whole {
            part.eq_ignore_ascii_case(entry.word)
        } else {
            starts_with(part, entry.word) && !(is_moving && entry.tone == Tone::Good)
        }
    })?;
    Some(found.tone)
}

/// Splits a text into parts: at every character that is not a letter, and where a capital begins a new part.
pub(super) fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphabetic())
        .flat_map(capitalised)
        .filter(|part| !part.is_empty())
}

/// Splits `DNSNotReady` into `DNS`, `Not` and `Ready`. The text has only ASCII letters.
fn capitalised(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut begin = 0;
    std::iter::from_fn(move || {
        if begin >= bytes.len() {
            return None;
        }
        let upper = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_uppercase);
        let lower = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_lowercase);
        let begins = |i: &usize| upper(*i) && (lower(i - 1) || lower(i + 1));
        let end = (begin + 1..bytes.len()).find(begins).unwrap_or(bytes.len());
        let part = &text[begin..end];
        begin = end;
        Some(part)
    })
}

pub(super) fn is_one_of(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
}

pub(super) fn starts_with(text: &str, beginning: &str) -> bool {
    text.as_bytes()
        .get(..beginning.len())
        .is_some_and(|begin| begin.eq_ignore_ascii_case(beginning.as_bytes()))
}

pub(super) fn ends_with(text: &str, end: &str) -> bool {
    let text = text.as_bytes();
    text.len() >= end.len() && text[text.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
}
