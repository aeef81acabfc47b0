//! Tests the call with which an agent asks whether it would be served. The answer is the same as the stream's, and the
//! cluster's current stream is not affected.

use muster_agent::dial;
use muster_pki::{Credentials, TrustBundle};
use muster_proto::{
    PROTOCOL_VERSION, VERSION,
    v1::{self, agent_message::Message, agents_client::AgentsClient},
};
use tonic::{Code, Status};

use crate::{
    agents::Agent,
    fixture::{Hub, publish, repository},
    raw::{hello, refusal},
};

async fn ask(
    hub: &Hub,
    trust: &TrustBundle,
    credentials: Option<&Credentials>,
    hello: v1::Hello,
) -> Result<v1::Checked, Status> {
    let channel = dial(&hub.address(), trust, credentials).await.unwrap();
    let checked = AgentsClient::new(channel).check(hello).await?;
    Ok(checked.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_asks_beside_the_stream_of_its_cluster() {
    let repo = repository();
    let hub = Hub::new(&repo).await;
    let agent = Agent::join(&hub, "eu-1").await;
    let badge = &agent.badge;
    let own = Some(&badge.credentials);
    let checked = ask(&hub, &badge.trust, own, hello(badge)).await.unwrap();
    assert_eq!(
        (checked.protocol, checked.version.as_str()),
        (PROTOCOL_VERSION, VERSION)
    );

    // The call answers the same as a stream with that hello.
    let newer = v1::Hello {
        protocol: 99,
        version: "9.9.9".to_owned(),
        ..hello(badge)
    };
    let elsewhere = v1::Hello {
        cluster: "eu-2".to_owned(),
        ..hello(badge)
    };
    for wrong in [newer, elsewhere] {
        let refused = ask(&hub, &badge.trust, own, wrong.clone())
            .await
            .unwrap_err();
        let stream = refusal(&hub, badge, Message::Hello(wrong)).await;
        assert_eq!(
            (refused.code(), refused.message()),
            (stream.code(), stream.message())
        );
    }
    assert_eq!(hub.refused("protocol").await, 2);
    assert_eq!(hub.refused("other_cluster").await, 2);

    let (trust, person) = hub.login().open().unwrap();
    for stranger in [None, Some(&person)] {
        let refused = ask(&hub, &trust, stranger, hello(badge)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }

    // The agent's own stream was not interrupted.
    let commit = publish(&repo, "larger", [("apps/web/values.yaml", "size: 2\n")]);
    hub.until_synced(&commit).await;
    assert_eq!(hub.refused("two_processes").await, 0);

    hub.remove("eu-1").await;
    let removed = ask(&hub, &badge.trust, own, hello(badge))
        .await
        .unwrap_err();
    assert_eq!(removed.code(), Code::PermissionDenied);
}
