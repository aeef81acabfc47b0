use std::time::Duration;

use super::*;

#[test]
fn a_lasting_refusal_is_recorded_once_an_hour() {
    let cluster: ClusterName = "eu-1".parse().unwrap();
    let (mut audited, start) = (HashMap::new(), Instant::now());
    let key = |reason: &'static str| (cluster.clone(), reason);
    let recorded: Vec<u64> = (0..180)
        .filter(|minute| {
            let now = start + Duration::from_secs(60 * minute);
            is_audit_due(&mut audited, key("unproven_term"), now)
        })
        .collect();
    assert_eq!(recorded, [0, 60, 120]);
    let now = start + Duration::from_secs(60 * 121);
    assert!(is_audit_due(&mut audited, key("nonsense"), now));
}
