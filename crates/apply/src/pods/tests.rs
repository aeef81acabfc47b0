use super::*;

#[test]
fn a_pod_of_a_list_is_judged_as_a_pod() {
    let pod = serde_json::json!({
        "metadata": {"name": "web-1"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "False", "message": "unready: [web]"}],
            "containerStatuses": [{"name": "web", "ready": false, "restartCount": 3, "state":
                {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}],
        },
    });
    let pod: DynamicObject = serde_json::from_value(pod).unwrap();
    let said = "pod web-1: container web: CrashLoopBackOff: back-off";
    assert_eq!(reason(&pod), Some((false, said.to_owned())));
}
