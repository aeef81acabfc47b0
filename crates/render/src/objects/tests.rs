use super::*;

#[test]
fn lists_are_opened_and_nothing_is_left_out() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a, labels: }\n---\n# nothing\n---\napiVersion: v1\nkind: ConfigMapList\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: a}, data: {z: \"1\", a: \"2\"}}\n";
    let objects = read(text, "a", None).unwrap();
    assert_eq!(objects.len(), 2);
    assert_eq!(
        objects[0].1.json.as_ref(),
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}"#
    );
    assert_eq!(objects[1].1.id.to_string(), "ConfigMap a/b");
    assert!(objects[1].1.json.ends_with(r#""data":{"a":"2","z":"1"},"kind":"ConfigMap","metadata":{"name":"b","namespace":"a"}}"#) || objects[1].1.json.contains(r#""data":{"a":"2","z":"1"}"#));
}

#[test]
fn an_empty_list_has_no_objects_and_an_empty_namespace_is_none() {
    for text in [
        "apiVersion: v1\nkind: List\nitems:\n",
        "apiVersion: v1\nkind: ConfigMapList\nitems: null\nmetadata: {resourceVersion: \"\"}\n",
        "apiVersion: v1\nkind: List\nitems: []\n---\n",
        "apiVersion: v1\nkind: List\nitems: [null, ~]\n",
    ] {
        assert_eq!(read(text, "a", None), Ok(Vec::new()), "{text}");
    }
    let text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: ";
    for namespace in ["\"\"", "", "null"] {
        let objects = read(&format!("{text}{namespace}}}}}\n"), "a", None).unwrap();
        assert_eq!(objects[0].1.id.to_string(), "ConfigMap a", "{namespace:?}");
    }
    // A custom kind that has `items` is not a list.
    let named = "{apiVersion: a.example/v1, kind: AllowList, metadata: {name: a}, items: }\n";
    assert_eq!(read(named, "a", None).unwrap().len(), 1);
}

#[test]
fn what_is_no_object_says_why_and_where() {
    let wrong = |text: &str| {
        let wrong = read(text, "a", None).unwrap_err().remove(0);
        (wrong.at.line, wrong.message)
    };
    let (line, message) = wrong("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n- a\n");
    assert_eq!(line, 5);
    assert!(
        message.contains("not a Kubernetes object but a list"),
        "{message}"
    );
    assert!(
        wrong("kind: X\nmetadata: {name: a}")
            .1
            .contains("no `apiVersion`")
    );
    assert!(
        wrong("apiVersion: v1\nkind: X\nmetadata: {name: 12}")
            .1
            .contains("quote it")
    );
    assert!(
        wrong("apiVersion: v1\nkind: X\nmetadata: {generateName: a-}")
            .1
            .contains("metadata.name")
    );
}
