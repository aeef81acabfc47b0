//! Checks the rules for fields that other field managers may set (`ignore`), the health rules, and the rules for
//! handing over a writer.

use std::collections::BTreeMap;

use super::{Load, name_at};
use crate::{
    bundle::Gvk,
    expression::{self, OBJECT},
    ids::RuleName,
    kinds::{AppSpec, Document, Kind, Mode},
    policy::{HealthRule, IgnoreRule},
    problem::{Problem, Scope},
    writer_rule::OBJECTS,
    yaml::{Node, Pos},
};

/// Fields that identify an object. They can't be ignored themselves, but other fields below them can.
const IDENTITY: [&str; 5] = [
    "/apiVersion",
    "/kind",
    "/metadata",
    "/metadata/name",
    "/metadata/namespace",
];

impl Load<'_> {
    pub(super) fn check_ignored(
        &mut self,
        scope: &Scope,
        file: &str,
        node: &Node,
        rules: &[IgnoreRule],
    ) {
        for (i, rule) in rules.iter().enumerate() {
            for (j, field) in rule.fields.iter().enumerate() {
                if IDENTITY.contains(&field.as_str()) {
                    let (i, j) = (i.to_string(), j.to_string());
                    let path = ["spec", "ignore", &i, "fields", &j];
                    let at = node.descend(path.into_iter()).at;
                    let message = format!("`{field}` can't be ignored: it identifies the object");
                    self.place(scope, file, at, message, None);
                }
            }
        }
    }

    /// Returns the rules in `health/`, sorted by group and kind.
    pub(super) fn health(&mut self) -> Vec<HealthRule> {
        let mut rules: BTreeMap<(String, String), (HealthRule, String)> = BTreeMap::new();
        let mut names: BTreeMap<RuleName, String> = BTreeMap::new();
        for path in self.files("health/") {
            if !path.ends_with(".yaml") {
                let problem = Problem::new(Scope::Hint, &path, "this file is not read");
                self.problems
                    .push(problem.help("health rules belong in health/NAME.yaml"));
                continue;
            }
            for (node, document) in self.decoded(&Scope::Fleet, &path, Kind::HealthRule) {
                let Document { metadata, spec, .. }: Document<RuleName, HealthRule> = document;
                self.check_cases(&path, &node, &spec);
                if let Some(other) = names.insert(metadata.name.clone(), path.clone()) {
                    let message = format!("there is also a rule `{}` in {other}", metadata.name);
                    self.place(&Scope::Fleet, &path, name_at(&node), message, None);
                }
                let key = (spec.group.clone(), spec.kind.clone());
                if let Some((_, other)) = rules.get(&key) {
                    let kind = match key {
                        (group, kind) if group.is_empty() => kind,
                        (group, kind) => format!("{kind}.{group}"),
                    };
                    let message = format!("{other} already has a rule for the health of {kind}");
                    let help = "put all cases of a kind into one rule; the first case that is true decides";
                    let at = node.descend(["spec", "kind"].into_iter()).at;
                    self.place(&Scope::Fleet, &path, at, message, Some(help));
                } else {
                    rules.insert(key, (spec, path.clone()));
                }
            }
        }
        rules.into_values().map(|(rule, _)| rule).collect()
    }

    fn check_cases(&mut self, path: &str, node: &Node, rule: &HealthRule) {
        for (index, case) in rule.cases.iter().enumerate() {
            let index = index.to_string();
            let at = |field| -> Pos {
                let path = ["spec", "cases", &index, field];
                node.descend(path.into_iter()).at
            };
            let expressions = [
                ("when", Some(&case.when)),
                ("message", case.message.as_ref()),
            ];
            for (field, text) in expressions {
                if let Some(Err(why)) = text.map(|text| self.judge(text, OBJECT)) {
                    let help = (field == "message")
                        .then_some("a text in CEL needs its own quotes: message: \"'text'\"");
                    self.place(&Scope::Fleet, path, at(field), why, help);
                }
            }
        }
    }

    /// Checks the expressions of an app's `writer`.
    pub(super) fn check_writer(&mut self, scope: &Scope, file: &str, node: &Node, spec: &AppSpec) {
        let Some(rule) = &spec.writer else { return };
        let at = |path: &[&str]| {
            let path = ["spec", "writer"].iter().chain(path);
            node.descend(path.copied()).at
        };
        if spec.mode == Mode::ActiveActive {
            let message = "an active-active app has no `writer`: it writes in every cluster";
            self.place(scope, file, at(&[]), message.to_owned(), None);
        }
        for (name, pointer) in &rule.stopped.objects {
            let gvk = Gvk::from_api_version(&pointer.api_version, &pointer.kind);
            if gvk.group.is_empty() && gvk.kind == "Secret" {
                let message = "`writer` can't name a Secret: what it carries over is stored in the fleet record";
                let at = at(&["stopped", "objects", name]);
                self.place(scope, file, at, message.to_owned(), None);
            }
        }
        if let Err(why) = self.judge(&rule.stopped.when, OBJECTS) {
            self.place(scope, file, at(&["stopped", "when"]), why, None);
        }
        for (name, text) in &rule.carry {
            if let Err(why) = self.judge(text, OBJECTS) {
                self.place(scope, file, at(&["carry", name]), why, None);
            }
        }
    }

    fn judge(&mut self, text: &str, variable: &'static str) -> Result<(), String> {
        let key = (variable, text.to_owned());
        if let Some(judged) = self.after.judged.get(&key) {
            return judged.clone();
        }
        let before = self.before.judged.remove(&key);
        let judged = before.unwrap_or_else(|| expression::check(text, variable));
        self.after.judged.insert(key, judged.clone());
        judged
    }
}
