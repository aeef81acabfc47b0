//! CEL expressions of a fleet repository, as far as they can be judged before there is an object.

use std::thread;

use cel::{
    IdedExpr, Program,
    common::ast::{EntryExpr, Expr},
};

/// Longer expressions are refused, in bytes.
const MAX_BYTES: usize = 4096;
/// Deeper ones too: whoever evaluates an expression goes down its tree on an ordinary stack.
const MAX_DEPTH: usize = 40;
/// The parser takes over a hundred KiB for each level where it is not optimised, and refuses the
/// ninety-seventh.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// The names of types, which may stand where variables do.
const TYPES: [&str; 10] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
];

/// Whether a text is a CEL expression over `object`.
///
/// # Errors
/// What is wrong with it, for people.
pub fn check(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("an expression is missing".to_owned());
    }
    if text.len() > MAX_BYTES {
        return Err(format!(
            "an expression has at most {MAX_BYTES} bytes, this one {}",
            text.len()
        ));
    }
    thread::scope(|scope| {
        let parsing = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || parse(text));
        match parsing.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(checked)) => checked,
            Ok(Err(_)) | Err(_) => Err("this expression can't be parsed".to_owned()),
        }
    })
}

fn parse(text: &str) -> Result<(), String> {
    match Program::compile(text) {
        Ok(program) => walk(program.expression(), &mut vec!["object"], 0),
        Err(errors) => {
            let Some(first) = errors.errors.first() else {
                return Err("this is no CEL expression".to_owned());
            };
            let why = first.msg.trim_start_matches("Syntax error: ");
            // What could have stood there is a list of every token.
            let why = why.split(" expecting {").next().unwrap_or(why);
            let (line, column) = first.pos;
            let place = if text.trim_end().contains('\n') {
                format!("line {line}, column {column}")
            } else {
                format!("column {column}")
            };
            Err(format!("this is no CEL expression: {why} at its {place}"))
        }
    }
}

/// Goes through an expression with the variables that are known there.
fn walk<'a>(
    expression: &'a IdedExpr,
    known: &mut Vec<&'a str>,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!(
            "this expression is nested more than {MAX_DEPTH} levels deep; split it into several cases"
        ));
    }
    let depth = depth + 1;
    match &expression.expr {
        Expr::Ident(name) => {
            let name = name.as_str();
            if known.contains(&name) || TYPES.contains(&name) {
                Ok(())
            } else {
                Err(format!(
                    "there is no variable `{name}`; an expression sees `object`"
                ))
            }
        }
        Expr::Call(call) => {
            let mut parts = call.target.iter().map(AsRef::as_ref).chain(&call.args);
            parts.try_for_each(|part| walk(part, known, depth))
        }
        Expr::Select(select) => walk(&select.operand, known, depth),
        Expr::List(list) => list
            .elements
            .iter()
            .try_for_each(|element| walk(element, known, depth)),
        Expr::Map(map) => entries(&map.entries, known, depth),
        Expr::Struct(object) => entries(&object.entries, known, depth),
        Expr::Comprehension(over) => {
            walk(&over.iter_range, known, depth)?;
            let before = known.len();
            known.extend([over.iter_var.as_str(), over.accu_var.as_str()]);
            known.extend(over.iter_var2.as_deref());
            for part in [
                &over.accu_init,
                &over.loop_cond,
                &over.loop_step,
                &over.result,
            ] {
                walk(part, known, depth)?;
            }
            known.truncate(before);
            Ok(())
        }
        Expr::Unspecified | Expr::Literal(_) => Ok(()),
    }
}

fn entries<'a>(
    entries: &'a [cel::common::ast::IdedEntryExpr],
    known: &mut Vec<&'a str>,
    depth: usize,
) -> Result<(), String> {
    entries.iter().try_for_each(|entry| match &entry.expr {
        EntryExpr::StructField(field) => walk(&field.value, known, depth),
        EntryExpr::MapEntry(entry) => {
            walk(&entry.key, known, depth)?;
            walk(&entry.value, known, depth)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_over_an_object_are_good() {
        for text in [
            "true",
            "object.status.phase == 'Ready'",
            "has(object.status.conditions) && object.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')",
            "object.spec.list.map(x, x + 1).all(y, object.limits.exists(z, z > y))",
            "type(object.spec.replicas) == int",
            "{'a': [object.kind]}['a'][0] + ': ' + string(object.status.ready)",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let told = |text: &str| check(text).unwrap_err();
        insta::assert_snapshot!(told(" "), @"an expression is missing");
        insta::assert_snapshot!(told("object.status.phase =="), @"this is no CEL expression: mismatched input '<EOF>' at its column 23");
        insta::assert_snapshot!(told("object.a = 3"), @"this is no CEL expression: token recognition error at: '= ' at its column 10");
        insta::assert_snapshot!(told("true &&\n  object..x"), @"this is no CEL expression: no viable alternative at input '..' at its line 2, column 10");
        insta::assert_snapshot!(told("objekt.status.phase == 'Ready'"), @"there is no variable `objekt`; an expression sees `object`");
        insta::assert_snapshot!(told("object.list.exists(c, c == 1) && c == 2"), @"there is no variable `c`; an expression sees `object`");
    }

    #[test]
    fn neither_length_nor_depth_breaks_anything() {
        let nested = |open: &str, close: &str, times: usize| {
            format!("{}1{}", open.repeat(times), close.repeat(times))
        };
        for text in [
            "x".repeat(MAX_BYTES + 1),
            nested("(", ")", 2000),
            nested("[", "]", 95),
            nested("object[", "]", 90),
            nested("object.a.exists(x, ", ")", 60),
            format!("1{}", " + 1".repeat(1000)),
            format!("object{}", "[0]".repeat(1000)),
            "object ? object : ".repeat(200) + "1",
        ] {
            let told = check(&text).unwrap_err();
            assert!(told.len() < 400, "{told}");
        }
    }
}
