//! Number literals in a template's expressions, such as `{% set tag = 1.10 %}`. A literal that would be printed
//! differently is refused, unless it is only used in a calculation or comparison.

use minijinja::{
    machinery::{Token, tokenize},
    syntax::SyntaxConfig,
};
use muster_model::yaml::printed;
use serde_json::Number;

/// A number literal that would be printed differently from how it is written.
#[derive(Debug, PartialEq)]
pub(crate) struct Literal<'a> {
    /// Its byte offset in the template.
    pub(crate) offset: usize,
    /// Its text in the template.
    pub(crate) text: &'a str,
    /// The text that would be printed. `None` if the number is out of range.
    pub(crate) printed: Option<String>,
}

/// Finds every number literal that would be printed differently from how it is written. The template must be valid.
pub(crate) fn rewritten<'a>(source: &'a str, syntax: &SyntaxConfig) -> Vec<Literal<'a>> {
    let tokens: Vec<_> = tokenize(source, false, syntax.clone())
        .map_while(Result::ok)
        .collect();
    let token = |index: usize| tokens.get(index).map(|(token, _)| token);
    let mut found = Vec::new();
    for (index, (literal, span)) in tokens.iter().enumerate() {
        let number = match literal {
            Token::Int(int) => Some(Number::from(*int)),
            Token::Int128(int) => Number::from_u128(**int),
            Token::Float(float) => Number::from_f64(*float),
            _ => continue,
        };
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        let text = source.get(start..end).unwrap_or_default();
        let before = index.checked_sub(1).and_then(token);
        let calculated = match before {
            // After an operand this is an operator; otherwise it is a sign.
            Some(Token::Minus | Token::Plus) => index.checked_sub(2).is_some_and(|index| {
                let before = index.checked_sub(1).and_then(token);
                token(index).is_some_and(|token| ends_operand(before, token))
            }),
            Some(token) => is_operator(token),
            None => false,
        } || token(index + 1).is_some_and(is_operator);
        if calculated {
            continue;
        }
        let printed = match number.map(|number| printed(&number, text)) {
            // It is printed as it is written.
            Some(None) => continue,
            printed => printed.flatten(),
        };
        found.push(Literal {
            offset: start,
            text,
            printed,
        });
    }
    found
}

/// Returns true if an operand ends with this token, so that a sign after it is an operator. `before` is the token
/// before it.
fn ends_operand(before: Option<&Token<'_>>, token: &Token<'_>) -> bool {
    match token {
        Token::Ident(word) => match before {
            // The word is a statement's name, as in `{% if -1.50 %}`.
            Some(Token::BlockStart) => false,
            // The word is an attribute, which may be named like a keyword.
            Some(Token::Dot) => true,
            _ => !matches!(*word, "and" | "else" | "if" | "in" | "is" | "not" | "or"),
        },
        Token::Str(_)
        | Token::String(_)
        | Token::Int(_)
        | Token::Int128(_)
        | Token::Float(_)
        | Token::ParenClose
        | Token::BracketClose => true,
        _ => false,
    }
}

fn is_operator(token: &Token<'_>) -> bool {
    matches!(
        token,
        Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::FloorDiv
            | Token::Pow
            | Token::Mod
            | Token::Eq
            | Token::Ne
            | Token::Gt
            | Token::Gte
            | Token::Lt
            | Token::Lte
    )
}

#[cfg(test)]
mod tests;
