use super::*;

fn bundle() -> Bundle {
    Bundle {
        header: BundleHeader {
            app: "wiki".parse().unwrap(),
            role: Role::Primary,
            namespace: "wiki".into(),
            after: vec!["crds".parse().unwrap()],
            formerly: None,
            policy: Policy::default(),
        },
        objects: vec![Object {
            id: ObjectRef {
                gvk: Gvk::from_api_version("apps/v1", "Deployment"),
                namespace: None,
                name: "wiki".into(),
            },
            json: r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"wiki"}}"#
                .into(),
        }],
    }
}

#[test]
fn an_encoded_bundle_is_decoded_unchanged() {
    assert_eq!(Bundle::decode(&bundle().encode()).unwrap(), bundle());
    let empty = Bundle {
        objects: vec![],
        ..bundle()
    };
    assert_eq!(Bundle::decode(&empty.encode()).unwrap(), empty);
}

#[test]
fn the_error_for_an_invalid_bundle_names_the_line() {
    let mut bytes = bundle().encode();
    bytes.extend_from_slice(b"\nnot json");
    assert!(
        Bundle::decode(&bytes)
            .unwrap_err()
            .to_string()
            .contains("line 3")
    );
    assert!(Bundle::decode(b"").is_err());
}
