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
    /// The text that would be printed.
    pub(crate) printed: String,
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
            Some(Token::Minus | Token::Plus) => index
                .checked_sub(2)
                .and_then(token)
                .is_some_and(ends_operand),
            Some(token) => is_operator(token),
            None => false,
        } || token(index + 1).is_some_and(is_operator);
        if calculated {
            continue;
        }
        let printed = match number {
            Some(number) => printed(&number, text),
            None => Some("a number that is out of range".to_owned()),
        };
        let Some(printed) = printed else {
            continue;
        };
        found.push(Literal {
            offset: start,
            text,
            printed,
        });
    }
    found
}

fn ends_operand(token: &Token<'_>) -> bool {
    matches!(
        token,
        Token::Ident(_)
            | Token::Str(_)
            | Token::String(_)
            | Token::Int(_)
            | Token::Int128(_)
            | Token::Float(_)
            | Token::ParenClose
            | Token::BracketClose
    )
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
