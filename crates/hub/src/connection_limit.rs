//! Limits the connections that have not presented a certificate. A new connection never waits: if the limit is reached,
//! the oldest connection of the address with the most connections is closed.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// A bounded set of connections.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The most connections of all addresses together.
    most: usize,
    /// The most connections of one address.
    most_of_one: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    places: BTreeMap<u64, CancellationToken>,
    by_address: HashMap<IpAddr, VecDeque<u64>>,
}

/// The place of a connection in a [`Pool`]. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    pool: Arc<Pool>,
    id: u64,
    address: IpAddr,
    /// Fires when another connection needs the place.
    pub(crate) evicted: CancellationToken,
}

/// Returns the part of an address that counts as one address. For IPv6 it is the /64 network, since one caller usually
/// has all of it.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

impl State {
    fn evict(&mut self, address: IpAddr) {
        let oldest = self
            .by_address
            .get_mut(&address)
            .and_then(VecDeque::pop_front);
        if let Some(token) = oldest.and_then(|id| self.places.remove(&id)) {
            token.cancel();
        }
    }
}

impl Pool {
    pub(crate) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_of_one,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a place for a connection from this address, without waiting.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Place {
        let address = neighbourhood(address);
        let mut state = self.state();
        let of_one =
            |state: &State, address| state.by_address.get(address).map_or(0, VecDeque::len);
        if of_one(&state, &address) >= self.most_of_one {
            state.evict(address);
        } else if state.places.len() >= self.most {
            let counts = state.by_address.iter();
            let heaviest = counts
                .max_by_key(|(_, ids)| ids.len())
                .map(|(address, _)| *address);
            if let Some(heaviest) = heaviest {
                state.evict(heaviest);
            }
        }
        let id = state.next;
        state.next += 1;
        let evicted = CancellationToken::new();
        state.places.insert(id, evicted.clone());
        state.by_address.entry(address).or_default().push_back(id);
        drop(state);
        Place {
            pool: Arc::clone(self),
            id,
            address,
            evicted,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.places.remove(&self.id);
        if let Some(ids) = state.by_address.get_mut(&self.address) {
            ids.retain(|id| *id != self.id);
            if ids.is_empty() {
                state.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
