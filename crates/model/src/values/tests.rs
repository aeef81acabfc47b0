use proptest::prelude::*;
use serde_json::json;

use super::*;

fn map(value: Value) -> Values {
    match value {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

#[test]
fn maps_merge_lists_replace_and_null_removes() {
    let lower = map(json!({"a": {"x": 1, "y": 2}, "list": [1, 2], "gone": 1, "n": {"k": 1}}));
    let upper = map(json!({"a": {"y": 3, "z": {"deep": null}}, "list": [3], "gone": null, "n": 5}));
    assert_eq!(
        layer([&lower, &upper]),
        map(json!({"a": {"x": 1, "y": 3, "z": {}}, "list": [3], "n": 5}))
    );
}

fn values() -> impl Strategy<Value = Values> {
    let leaf = prop_oneof![
        Just(json!(null)),
        (0..3_i32).prop_map(Value::from),
        Just(json!([1]))
    ];
    let tree = leaf.prop_recursive(3, 12, 3, |inner| {
        proptest::collection::btree_map("[abc]", inner, 0..3)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    });
    proptest::collection::btree_map("[abc]", tree, 0..3).prop_map(|m| m.into_iter().collect())
}

proptest! {
    #[test]
    fn the_lower_layers_can_be_laid_first(a in values(), b in values(), c in values()) {
        prop_assert_eq!(layer([&a, &b, &c]), layer([&layer([&a, &b]), &c]));
    }

    #[test]
    fn no_removal_remains(a in values(), b in values()) {
        fn nulls(value: &Value) -> bool {
            match value {
                Value::Null => true,
                Value::Object(map) => map.values().any(nulls),
                _ => false,
            }
        }
        prop_assert!(!nulls(&Value::Object(layer([&a, &b]))));
    }
}
