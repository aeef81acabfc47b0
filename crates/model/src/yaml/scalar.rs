//! What one scalar means: its type from its text, its style and its tag.

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use granit_parser::{ScalarStyle, Tag};
use serde_json::{Number, Value};

/// The prefix of YAML's own tags, which `!!` stands for.
const YAML_TAGS: &str = "tag:yaml.org,2002:";

/// The value of a scalar, or why its text or tag is not understood.
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

/// Refuses a tag on a list or map that says more than that it is one.
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

/// `!` alone: a scalar is text, and a collection is what it is.
fn is_nonspecific(tag: &Tag) -> bool {
    matches!((tag.handle(), tag.suffix()), ("!", "") | ("", "!"))
}

fn not_understood(tag: &Tag) -> String {
    let written = format!("{}{}", tag.original_handle(), tag.suffix());
    format!("the tag `{written}` is not understood here")
}

/// The text that base64 stands for. JSON has no bytes, so what is no text is refused.
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

/// What templates print instead of a number's own text: alone, in a list or as JSON. `None` where they
/// print it with the digits that it is written with.
#[must_use]
pub fn printed(number: &Number, text: &str) -> Option<String> {
    // Most numbers are small and whole.
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

/// A number as a key of a map, as Kubernetes' reader writes it: floats in 32 bits, like C's `%g`.
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

/// Whether a plain scalar is text by its first letter alone.
pub(super) fn is_word(text: &str) -> bool {
    let first = text.as_bytes().first();
    first.is_some_and(|first| {
        first.is_ascii_alphabetic() && !matches!(first, b'n' | b'N' | b't' | b'T' | b'f' | b'F')
    })
}

/// A plain scalar's value.
fn plain(text: &str) -> Result<Value, String> {
    let Some(first) = text.bytes().next() else {
        return Ok(Value::Null);
    };
    // Most plain scalars are words; look closer only at what can begin something else.
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
            "{text} has no place in a Kubernetes object; quote it if it is text"
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
    // Rust's own reader of floats also takes words such as "infinity", and YAML's needs a digit.
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
