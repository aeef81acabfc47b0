//! What the words mean that controllers choose for states, reasons and condition types: `ImagePullFailed`,
//! `HEALTH_WARN`, `in-progress`. They are read by their parts, so that one that nobody listed is
//! understood as well.

use std::sync::LazyLock;

/// The direction that a word points in, the weakest first: of several the strongest is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tone {
    /// It is as it should be.
    Good,
    /// Somebody stopped it on purpose.
    Stopped,
    /// It is on its way.
    Moving,
    /// It is not as it should be, which may pass: `NotReady`, `Unavailable`.
    Lacking,
    /// It went wrong.
    Bad,
}

/// The parts that mean something, each by how it begins, or by its whole where a `.` ends it.
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

/// Parts that end like a movement and are none.
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

/// The vocabulary by first letters.
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

/// What a word or a few of them say; `None` where they say nothing that is known.
pub(super) fn tone(text: &str) -> Option<Tone> {
    // Beside others, this is a direction: `backing-up`, `ScalingUp`.
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
        // What ends in -ing says something else only as a whole: `Running`, but not `Succeeding`.
        let is_moving = part.len() > 4 && ends_with(part, "ing");
        let Some(tone) = of_pair.or_else(|| tone_of_part(part, is_moving)) else {
            moves |= is_moving && !is_one_of(part, &STANDING);
            continue;
        };
        // "NoErrors" is good, "NotReady" isn't yet; a "not" reaches to the next part that means something.
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

/// The parts of a word: at anything that is no letter, and where a capital begins a new part.
pub(super) fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphabetic())
        .flat_map(capitalised)
        .filter(|part| !part.is_empty())
}

/// `DNSNotReady` into `DNS`, `Not`, `Ready`. The text is ASCII letters only.
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
