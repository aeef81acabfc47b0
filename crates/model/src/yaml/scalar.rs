//! Decides the type and value of a scalar from its text, style and tag.

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use granit_parser::{ScalarStyle, Tag};
use serde_json::{Number, Value};

/// The prefix of YAML's own tags, which `!!` abbreviates.
const YAML_TAGS: &str = "tag:yaml.org,2002:";

/// Returns the value of a scalar, or a message if its text or tag is not supported.
pub(super) fn value(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let string = || Ok(Value::String(text.to_owned()));
    let Some(tag) = tag else {
        return if style == ScalarStyle::Plain {
            plain(text)
        } else {
            string()
        };
    };
    if is_nonspecific(tag) {
        return string();
    }
    let name = tag.suffix_in_namespace(YAML_TAGS);
    match name.as_deref() {
        Some("str") => string(),
        Some("merge") if text == "<<" => string(),
        Some("binary") => binary(text),
        Some("null") if plain(text)? == Value::Null => Ok(Value::Null),
        Some("bool") if plain(text)?.is_boolean() => plain(text),
        Some("int") if matches!(plain(text)?, Value::Number(n) if !n.is_f64()) => plain(text),
        Some("float") if plain(text)?.is_number() => plain(text),
        _ => Err(not_understood(tag)),
    }
}

/// Refuses any tag on a list or map except `!` and the tag of its own type.
pub(super) fn check_collection(tag: Option<&Tag>, kind: &str) -> Result<(), String> {
    match tag {
        Some(tag)
            if !is_nonspecific(tag)
                && tag.suffix_in_namespace(YAML_TAGS).as_deref() != Some(kind) =>
        {
            Err(not_understood(tag))
        }
        _ => Ok(()),
    }
}

/// Returns true for the tag `!`, which makes a scalar a string and does not change a collection.
fn is_nonspecific(tag: &Tag) -> bool {
    matches!((tag.handle(), tag.suffix()), ("!", "") | ("", "!"))
}

fn not_understood(tag: &Tag) -> String {
    let written = format!("{}{}", tag.original_handle(), tag.suffix());
    format!("the tag `{written}` is not supported")
}

/// Decodes base64 into text. JSON has no byte strings, so bytes that are not text are refused.
fn binary(text: &str) -> Result<Value, String> {
    let text: String = text.split_ascii_whitespace().collect();
    let bytes = BASE64_STANDARD
        .decode(text)
        .map_err(|error| format!("`!!binary` is not base64: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|_| {
        "`!!binary` holds bytes that are not text; put them below `binaryData` of a ConfigMap or \
         `data` of a Secret, without the tag"
            .to_owned()
    })?;
    Ok(Value::String(text))
}

/// Returns the text that templates print for a number if it differs from the text in the file. A template may
/// print the number alone, in a list or as JSON. Returns `None` if the text is the same in all three cases.
#[must_use]
pub fn printed(number: &Number, text: &str) -> Option<String> {
    // Fast path: most numbers are small and whole.
    let plain = |digits: &[u8]| digits.iter().all(u8::is_ascii_digit) && digits.len() < 19;
    if !number.is_f64() && (text == "0" || (!text.starts_with('0') && plain(text.as_bytes()))) {
        return None;
    }
    let float = number.as_f64().filter(|_| number.is_f64());
    let alone = match float {
        Some(float) if float.fract() == 0.0 => format!("{float}.0"),
        Some(float) => float.to_string(),
        None => number.to_string(),
    };
    let in_list = float.map(|float| format!("{float:?}"));
    let forms = [Some(alone), in_list, Some(number.to_string())];
    forms.into_iter().flatten().find(|form| form != text)
}

/// Returns a number as a map key, as Kubernetes' reader writes it: floats in 32 bits, formatted like C's `%g`.
pub(super) fn key(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
        return number.to_string();
    };
    #[allow(
        clippy::cast_possible_truncation,
        reason = "Kubernetes' reader rounds, too"
    )]
    let float = float as f32;
    let short = format!("{float:e}");
    let (digits, exponent) = short.split_once('e').unwrap_or((&short, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => float.to_string(),
    }
}

/// Returns true if the first letter alone shows that a plain scalar is text.
pub(super) fn is_word(text: &str) -> bool {
    let first = text.as_bytes().first();
    first.is_some_and(|first| {
        first.is_ascii_alphabetic() && !matches!(first, b'n' | b'N' | b't' | b'T' | b'f' | b'F')
    })
}

/// Returns the value of a plain scalar.
fn plain(text: &str) -> Result<Value, String> {
    let Some(first) = text.bytes().next() else {
        return Ok(Value::Null);
    };
    // Most plain scalars are words. Check only those whose first character can begin another type.
    Ok(match first {
        b'~' | b'n' | b'N' if matches!(text, "~" | "null" | "Null" | "NULL") => Value::Null,
        b't' | b'T' if matches!(text, "true" | "True" | "TRUE") => Value::Bool(true),
        b'f' | b'F' if matches!(text, "false" | "False" | "FALSE") => Value::Bool(false),
        b'0'..=b'9' | b'-' | b'+' | b'.' => match number(text)? {
            Some(number) => Value::Number(number),
            None => Value::String(text.to_owned()),
        },
        _ => Value::String(text.to_owned()),
    })
}

fn number(text: &str) -> Result<Option<Number>, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN") {
        return Err(format!(
            "{text} can't be used in a Kubernetes object; quote it if it is text"
        ));
    }
    let radix = |digits: &str, radix| {
        let plausible = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_alphanumeric());
        plausible
            .then(|| i64::from_str_radix(digits, radix).ok())
            .flatten()
    };
    let prefixed = match digits.as_bytes() {
        [b'0', b'x', ..] => Some(radix(&digits[2..], 16)),
        [b'0', b'o', ..] => Some(radix(&digits[2..], 8)),
        [b'0', rest @ ..] if !rest.is_empty() && rest.iter().all(u8::is_ascii_digit) => {
            Some(radix(&digits[1..], 8))
        }
        _ => None,
    };
    if let Some(value) = prefixed {
        return Ok(value.map(|value| Number::from(if negative { -value } else { value })));
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) && !digits.is_empty() {
        let unsigned = Cow::from(text.strip_prefix('+').unwrap_or(text));
        if let Ok(value) = unsigned.parse::<i64>() {
            return Ok(Some(value.into()));
        }
        if let Ok(value) = unsigned.parse::<u64>() {
            return Ok(Some(value.into()));
        }
    }
    // Rust's float parser also accepts words such as "infinity"; YAML requires a digit.
    let float = digits.bytes().any(|b| b.is_ascii_digit())
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    Ok(if float {
        text.parse::<f64>().ok().and_then(Number::from_f64)
    } else {
        None
    })
}
