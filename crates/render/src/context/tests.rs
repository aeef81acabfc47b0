use muster_model::{kinds::Values, values::layer};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn as_json(overlay: &Overlay) -> Json {
    let entries = overlay.keys().into_iter().map(|key| {
        let value = match overlay.get(&key) {
            Seen::Absent => Json::Null,
            Seen::Leaf(value, _) => serde_json::to_value(value).unwrap(),
            Seen::Map(map) => as_json(&map),
        };
        (key.to_string(), value)
    });
    Json::Object(entries.collect())
}

fn values() -> impl Strategy<Value = Values> {
    let leaf = prop_oneof![
        Just(json!(null)),
        (0..3_i32).prop_map(Json::from),
        Just(json!([1, null]))
    ];
    let tree = leaf.prop_recursive(3, 12, 3, |inner| {
        proptest::collection::btree_map("[abc]", inner, 0..3)
            .prop_map(|map| Json::Object(map.into_iter().collect()))
    });
    proptest::collection::btree_map("[abc]", tree, 0..3).prop_map(|m| m.into_iter().collect())
}

proptest! {
    #[test]
    fn an_overlay_shows_what_layering_says(layers in proptest::collection::vec(values(), 0..5)) {
        let overlay = Overlay::new(layers.iter().rev().map(Layer::new));
        prop_assert_eq!(as_json(&overlay), Json::Object(layer(&layers)));
    }
}
