//! Fuzz targets for data from the network: from agents, people, hubs, and clients without a certificate.

use std::{sync::LazyLock, time::Duration};

use muster_model::bundle::Bundle;
use muster_pki::{
    AdminName, Ca, Certified, Identity, JoinSecret, JoinToken, Key, TrustBundle, clock,
};
use muster_proto::v1;
use prost::Message as _;

/// Decodes messages between agents, people and hubs, and the bundles in them. The first byte selects the type.
pub(crate) fn messages(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    match kind {
        b'a' => {
            let _ = v1::AgentMessage::decode(bytes);
        }
        b'h' => {
            let Ok(message) = v1::HubMessage::decode(bytes) else {
                return;
            };
            if let Some(v1::hub_message::Message::Generation(generation)) = message.message {
                let _ = (generation.computed_content(), generation.prune_orders());
                for bundle in &generation.bundles {
                    let _ = bundle.content_hash();
                }
            }
        }
        b'p' => {
            let _ = v1::StatusRequest::decode(bytes);
            let _ = v1::ApproveSetRequest::decode(bytes);
            let _ = v1::EnrolRequest::decode(bytes);
        }
        _ => {
            if let Ok(bundle) = Bundle::decode(bytes) {
                let encoded = bundle.encode();
                let again = Bundle::decode(&encoded).expect("an encoded bundle can be decoded");
                assert_eq!(again.encode(), encoded);
            }
        }
    }
}

static CA: LazyLock<Ca> = LazyLock::new(|| Ca::create(clock::now()).expect("a CA can be created"));

/// Parses tokens, names, certificates, keys and certificate requests.
pub(crate) fn tokens(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(token) = text.parse::<JoinToken>() {
        let again = token.expose().parse::<JoinToken>();
        assert_eq!(again.expect("an exposed token can be parsed"), token);
    }
    let _ = (text.parse::<JoinSecret>(), text.parse::<AdminName>());
    let _ = Certified::of_pem(text);
    let _ = TrustBundle::from_pem(text);
    let _ = Key::from_pem(text);
    let _ = Ca::from_pem(text);
    let name: AdminName = "ada".parse().expect("`ada` is a valid name");
    let _ = CA.sign(
        text,
        &Identity::Admin(name),
        Duration::from_secs(60),
        clock::now(),
    );
}
