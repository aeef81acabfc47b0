use super::*;

fn state(name: &str, namespace: &str, health: &str, message: &str) -> v1::ObjectState {
    v1::ObjectState {
        app: "payments".to_owned(),
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: String::new(),
        state: "Applied".to_owned(),
        health: health.to_owned(),
        message: message.to_owned(),
    }
}

fn answers() -> Objects {
    let told = v1::ClusterObjects {
        cluster: "eu-west-1".to_owned(),
        objects: vec![
            state(
                "api",
                "payments",
                "Degraded",
                "container api: ImagePullBackOff:\nback-off",
            ),
            state("ledger", "payments", "Healthy", ""),
            state("payments", "", "Healthy", ""),
        ],
        problem: String::new(),
    };
    let silent = v1::ClusterObjects {
        cluster: "eu-west-2".to_owned(),
        objects: vec![],
        problem: "its agent is not connected".to_owned(),
    };
    Objects::of(vec![told, silent], &[])
}

#[test]
fn objects_as_a_table() {
    let objects = answers();
    insta::assert_snapshot!(object_grid(&objects.objects).draw(Terminal::default()), @r"
        CLUSTER    APP       KIND        NAMESPACE/NAME   STATE    HEALTH    MESSAGE
        eu-west-1  payments  Deployment  payments/api     Applied  Degraded  container api: ImagePullBackOff: back-off
        eu-west-1  payments  Deployment  payments/ledger  Applied  Healthy
        eu-west-1  payments  Deployment  payments         Applied  Healthy
        ");
    let narrow = Terminal {
        width: Some(80),
        ..Terminal::default()
    };
    insta::assert_snapshot!(object_grid(&objects.objects).draw(narrow), @r"
        KIND        NAMESPACE/NAME   STATE    HEALTH    MESSAGE
        Deployment  payments/api     Applied  Degraded  container api: ImagePullBackOff:
                                                        back-off
        Deployment  payments/ledger  Applied  Healthy
        Deployment  payments         Applied  Healthy
        ");
}

#[test]
fn objects_as_json() {
    let named = answers().narrow(Some("payments/api")).unwrap();
    insta::assert_snapshot!(format!("{:#}", value(&named).unwrap()), @r#"
        {
          "objects": [
            {
              "apiVersion": "apps/v1",
              "app": "payments",
              "cluster": "eu-west-1",
              "health": "Degraded",
              "kind": "Deployment",
              "message": "container api: ImagePullBackOff:\nback-off",
              "name": "api",
              "namespace": "payments",
              "state": "Applied",
              "uid": ""
            }
          ],
          "unanswered": [
            {
              "cluster": "eu-west-2",
              "problem": "its agent is not connected"
            }
          ]
        }
        "#);
}

#[test]
fn an_unknown_name_is_an_error_only_if_every_agent_answered() {
    let objects = answers();
    assert_eq!(objects.clone().narrow(Some("apo")).unwrap().objects, vec![]);
    let answered = Objects {
        unanswered: vec![],
        ..objects
    };
    let error = answered.narrow(Some("apo")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no object `apo`; did you mean `api`?"
    );
}
