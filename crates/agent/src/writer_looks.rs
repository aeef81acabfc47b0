//! Looks at the apps that have a writer: whether their role is applied, and whether the app's rule says that it has
//! stopped writing. The hub moves a writer only by what these looks show.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    discovery::{self, Scope},
};
use muster_apply::{Observed, ObservedBundle, StoredBundle, StoredGeneration};
use muster_model::{
    bundle::{BundleHeader, Gvk},
    ids::{AppName, ContentHash, Epoch, Role},
    writer_rule::{ObjectPointer, WriterRule},
};
use muster_plan::{
    health::Health,
    writer_rule::{Rule, Verdict, hash_of},
};
use muster_proto::v1;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// The pause between two looks at an app that got its role within the last minute, if it is fenced and has not stopped
/// yet, or is the primary and does not write yet.
const SOON: Duration = Duration::from_millis(300);
/// The time after which the pause between two looks at such an app is [`LATER`].
const PATIENT: Duration = Duration::from_secs(60);
/// The pause after such a look later on, and after a failed look.
const LATER: Duration = Duration::from_secs(3);
/// The pause between two looks at any other app.
const RARELY: Duration = Duration::from_secs(30);
/// The time after a change that is waited for more changes.
const GATHER: Duration = Duration::from_millis(50);
/// The longest time that one request of a look may take.
const WITHIN: Duration = Duration::from_secs(5);

/// The newest look at each app that has a writer.
pub(crate) type Looks = BTreeMap<AppName, v1::WriterLook>;

/// What is remembered from one look to the next.
struct Eyes {
    client: Client,
    rules: HashMap<ContentHash, Result<Arc<Rule>, String>>,
    kinds: HashMap<Gvk, (ApiResource, Scope)>,
    verdicts: HashMap<AppName, Judged>,
}

/// The newest evaluation of an app's rule.
#[derive(Clone)]
struct Judged {
    /// The epoch and the bundle that were in force.
    of: (Epoch, ContentHash),
    is_applied: bool,
    verdict: Result<Verdict, String>,
    /// The time of the first evaluation for this epoch and bundle.
    since: Instant,
    /// The time from which on the rule is evaluated again.
    again: Instant,
}

/// Publishes a look at each app with a writer whenever something may have changed.
pub(crate) async fn look(
    client: Client,
    mut observed: watch::Receiver<Arc<Observed>>,
    mut in_force: watch::Receiver<Option<Arc<StoredGeneration>>>,
    looks: watch::Sender<Arc<Looks>>,
) {
    let mut eyes = Eyes {
        client,
        rules: HashMap::new(),
        kinds: HashMap::new(),
        verdicts: HashMap::new(),
    };
    loop {
        let stored = in_force.borrow_and_update().clone();
        let now = observed.borrow_and_update().clone();
        let mut seen = Looks::new();
        if let Some(stored) = &stored {
            eyes.forget_others(stored);
            let role = |bundle: &&StoredBundle| bundle.bundle().header.role;
            let mut bundles: Vec<&StoredBundle> = stored.bundles.iter().collect();
            bundles.retain(|bundle| role(bundle) != Role::Active);
            // A move waits for those that are fenced.
            bundles.sort_by_key(|bundle| role(bundle) != Role::Fenced);
            for bundle in bundles {
                let look = eyes.look(stored, bundle, &now).await;
                seen.insert(bundle.bundle().header.app.clone(), look);
            }
        }
        eyes.verdicts.retain(|app, _| seen.contains_key(app));
        let next = eyes.verdicts.values().map(|judged| judged.again).min();
        looks.send_if_modified(|looks| {
            let changes = **looks != seen;
            if changes {
                *looks = Arc::new(seen);
            }
            changes
        });
        tokio::select! {
            () = looks.closed() => return,
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            changed = in_force.changed() => if changed.is_err() { return },
            changed = observed.changed() => {
                if changed.is_err() { return }
                tokio::time::sleep(GATHER).await;
            }
        }
    }
}

impl Eyes {
    /// Drops the rules that the generation does not have.
    fn forget_others(&mut self, stored: &StoredGeneration) {
        let headers = stored.bundles.iter().map(|bundle| &bundle.bundle().header);
        let rules = headers.filter_map(|header| header.policy.writer.as_ref());
        let hashes: Vec<ContentHash> = rules.map(hash_of).collect();
        self.rules.retain(|hash, _| hashes.contains(hash));
    }

    async fn look(
        &mut self,
        stored: &StoredGeneration,
        bundle: &StoredBundle,
        now: &Observed,
    ) -> v1::WriterLook {
        let header = &bundle.bundle().header;
        let epoch = stored
            .record
            .as_ref()
            .map_or(Epoch(0), |record| record.epoch);
        let (is_applied, is_healthy) = progress(stored, bundle, now);
        let mut look = v1::WriterLook {
            epoch: epoch.0,
            role: header.role.to_string(),
            applied: is_applied,
            healthy: is_healthy,
            ..v1::WriterLook::default()
        };
        let Some(rule) = header
            .policy
            .writer
            .as_ref()
            .filter(|_| header.role != Role::Standby)
        else {
            self.verdicts.remove(&header.app);
            return look;
        };
        look.rule = hash_of(rule).0.to_vec();
        let of = (epoch, bundle.hash());
        let known = self.verdicts.get(&header.app);
        let known = known
            .filter(|judged| judged.of == of && judged.is_applied == is_applied)
            .filter(|judged| Instant::now() < judged.again);
        let verdict = match known {
            Some(judged) => judged.verdict.clone(),
            None => {
                let before = self
                    .verdicts
                    .get(&header.app)
                    .filter(|judged| judged.of == of);
                let since = before.map_or_else(Instant::now, |judged| judged.since);
                let verdict = self.judge(header, rule).await;
                let is_usual = match (&verdict, header.role) {
                    (Err(_), _) => false,
                    (Ok(verdict), Role::Fenced) => verdict.stopped,
                    (Ok(verdict), _) => !verdict.stopped,
                };
                let pause = match (is_usual, &verdict) {
                    (true, _) => RARELY,
                    (false, Ok(_)) if since.elapsed() < PATIENT => SOON,
                    (false, _) => LATER,
                };
                let judged = Judged {
                    of,
                    is_applied,
                    verdict: verdict.clone(),
                    since,
                    again: Instant::now() + pause,
                };
                self.verdicts.insert(header.app.clone(), judged);
                verdict
            }
        };
        match verdict {
            Ok(verdict) => {
                let named = |values: BTreeMap<String, String>| -> Vec<v1::NamedValue> {
                    let values = values.into_iter();
                    values
                        .map(|(name, value)| v1::NamedValue { name, value })
                        .collect()
                };
                look.stopped = verdict.stopped;
                look.evaluated = verdict.is_evaluated;
                look.uids = named(verdict.uids);
                look.carried = named(verdict.carried);
                look.why = verdict.why;
            }
            Err(why) => look.why = why,
        }
        look
    }

    /// Reads the objects that a rule names, and evaluates it.
    async fn judge(&mut self, header: &BundleHeader, rule: &WriterRule) -> Result<Verdict, String> {
        let hash = hash_of(rule);
        let compiled = self
            .rules
            .entry(hash)
            .or_insert_with(|| Rule::compile(rule).map(Arc::new))
            .clone()?;
        let mut objects = BTreeMap::new();
        for (name, pointer) in &rule.stopped.objects {
            let read = timeout(WITHIN, self.read(header, pointer)).await;
            let read = read.map_err(|_| "the API server does not answer".to_owned());
            let object = read
                .and_then(|read| read)
                .map_err(|why| format!("`objects.{name}` can't be read: {why}"))?;
            objects.extend(object.map(|object| (name.clone(), object)));
        }
        Ok(compiled.judge(&objects))
    }

    /// Reads an object from the API server; `None` if it does not exist.
    async fn read(
        &mut self,
        header: &BundleHeader,
        pointer: &ObjectPointer,
    ) -> Result<Option<Value>, String> {
        let gvk = Gvk::from_api_version(&pointer.api_version, &pointer.kind);
        let (kind, scope) = match self.kinds.get(&gvk) {
            Some(kind) => kind.clone(),
            None => {
                let wanted = GroupVersionKind::gvk(&gvk.group, &gvk.version, &gvk.kind);
                match discovery::pinned_kind(&self.client, &wanted).await {
                    Ok((kind, capabilities)) => {
                        let known = (kind, capabilities.scope);
                        self.kinds.insert(gvk.clone(), known.clone());
                        known
                    }
                    Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
                    Err(kube::Error::Discovery(_)) => return Ok(None),
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        let namespace = pointer.namespace.as_deref().unwrap_or(&header.namespace);
        let api: Api<DynamicObject> = match scope {
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, &kind),
            Scope::Cluster => Api::all_with(self.client.clone(), &kind),
        };
        match api.get_opt(&pointer.name).await {
            Ok(None) => {
                // Its kind may be served in another way by now.
                self.kinds.remove(&gvk);
                Ok(None)
            }
            Ok(Some(object)) => serde_json::to_value(object)
                .map(Some)
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Returns true if a bundle of the generation in force is applied as a whole, and true if it is healthy, too.
fn progress(stored: &StoredGeneration, bundle: &StoredBundle, now: &Observed) -> (bool, bool) {
    let app = &bundle.bundle().header.app;
    if now.generation != Some((stored.generation, stored.hash)) {
        return (false, false);
    }
    let is_leaving = now.leftovers.iter().any(|leftover| leftover.app == *app);
    let is_pending = now.pending_approvals.iter().any(|set| set.app == *app);
    let mut bundles = now.bundles.iter();
    let same = bundles.find(|other| other.app == *app && other.hash == bundle.hash());
    // A fenced app's drift is always corrected. Elsewhere, drift that the app lets stand is no fault.
    let is_applied = |other: &&Arc<ObservedBundle>| {
        let counts = other.counts;
        let tolerated = match other.role {
            Role::Fenced => 0,
            _ => counts.drifted,
        };
        counts.failed == 0 && counts.applied + tolerated == counts.total
    };
    match same.filter(|other| is_applied(other) && !is_leaving && !is_pending) {
        Some(other) => {
            let is_healthy = matches!(other.health, Health::Healthy | Health::Suspended);
            (true, is_healthy)
        }
        None => (false, false),
    }
}
