use super::*;

#[test]
fn the_address_with_the_most_gives_way_and_others_stay() {
    let pool = Pool::new(10, 8);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let agent = pool.enter(address("192.0.2.1"));
    let flood: Vec<Place> = (0..100)
        .map(|_| pool.enter(address("198.51.100.7")))
        .collect();
    assert!(!agent.evicted.is_cancelled());
    assert_eq!(
        flood
            .iter()
            .filter(|place| !place.evicted.is_cancelled())
            .count(),
        8
    );
    assert!(!flood[99].evicted.is_cancelled());
    // Many addresses of one IPv6 network count as one.
    let network: Vec<Place> = (0..100)
        .map(|n| pool.enter(address(&format!("2001:db8:0:1::{n:x}"))))
        .collect();
    let of_network = network
        .iter()
        .filter(|place| !place.evicted.is_cancelled())
        .count();
    let of_flood = flood
        .iter()
        .filter(|place| !place.evicted.is_cancelled())
        .count();
    assert!(!agent.evicted.is_cancelled());
    assert_eq!(1 + of_network + of_flood, 10);
    drop((flood, network));
    let state = pool.state();
    assert_eq!((state.places.len(), state.by_address.len()), (1, 1));
}
