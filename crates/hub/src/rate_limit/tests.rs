use super::*;

#[test]
fn a_burst_passes_and_a_flood_does_not() {
    let mut bucket = Bucket::new();
    let passed = (0..10_000).take_while(|_| bucket.take(100)).count();
    assert!((300..=500).contains(&passed), "{passed}");
    let mut bucket = Bucket::new();
    let large = (0..10_000).take_while(|_| bucket.take(4 << 20)).count();
    assert!((4..=8).contains(&large), "{large}");
}
