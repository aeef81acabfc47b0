use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn what_is_escaped_is_the_same_json(text in "(\\PC|[\u{0}-\u{ff}\u{2028}\u{2029}\u{feff}\u{fffd}-\u{ffff}🚀]){0,40}") {
        let json = json!({text.clone(): text}).to_string();
        let yaml = as_yaml(json.clone().into());
        let yaml = str::from_utf8(&yaml).unwrap();
        prop_assert!(!yaml.contains(is_escaped));
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        prop_assert_eq!(read(yaml), read(&json));
    }
}
