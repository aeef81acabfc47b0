//! A stream that a test drives message by message, so that it can send what a real agent would never send.

use muster_agent::dial;
use muster_proto::{
    PROTOCOL_VERSION,
    v1::{self, admin_client::AdminClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::{agents::Badge, fixture::Hub};

pub(crate) struct Raw {
    pub(crate) say: mpsc::Sender<v1::AgentMessage>,
    pub(crate) hear: Streaming<v1::HubMessage>,
}

/// Returns the hello of an agent that has no generation yet.
pub(crate) fn hello(badge: &Badge) -> v1::Hello {
    v1::Hello {
        protocol: PROTOCOL_VERSION,
        version: "test".to_owned(),
        cluster: badge.cluster.to_string(),
        process: rand::random(),
        ..v1::Hello::default()
    }
}

impl Raw {
    /// Opens a stream with this as its first message.
    pub(crate) async fn open(
        hub: &Hub,
        badge: &Badge,
        first: v1::agent_message::Message,
    ) -> Result<Self, Status> {
        let channel = dial(&hub.address(), &badge.trust, Some(&badge.credentials)).await;
        let (say, messages) = mpsc::channel(64);
        let message = v1::AgentMessage {
            message: Some(first),
        };
        say.send(message).await.unwrap();
        let mut client = v1::agents_client::AgentsClient::new(channel.unwrap());
        let hear = client.follow(ReceiverStream::new(messages)).await?;
        Ok(Self {
            say,
            hear: hear.into_inner(),
        })
    }

    pub(crate) async fn hello(hub: &Hub, badge: &Badge, hello: v1::Hello) -> Result<Self, Status> {
        Self::open(hub, badge, v1::agent_message::Message::Hello(hello)).await
    }

    pub(crate) async fn next(&mut self) -> Result<v1::hub_message::Message, Status> {
        let message = self.hear.message().await?;
        Ok(message.and_then(|message| message.message).unwrap())
    }

    pub(crate) async fn welcome(&mut self) -> v1::Welcome {
        match self.next().await.unwrap() {
            v1::hub_message::Message::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn generation(&mut self) -> v1::Generation {
        match self.next().await.unwrap() {
            v1::hub_message::Message::Generation(generation) => generation,
            other => panic!("{other:?}"),
        }
    }
}

/// Returns the status with which the hub ends a stream that begins with this message.
pub(crate) async fn refusal(hub: &Hub, badge: &Badge, first: v1::agent_message::Message) -> Status {
    match Raw::open(hub, badge, first).await {
        Err(status) => status,
        Ok(mut raw) => raw.next().await.unwrap_err(),
    }
}

/// Makes the calls that are for people, except those about the CA, and returns the refusals. Calls that are served are
/// left out.
pub(crate) async fn refused_to_people(channel: Channel) -> Vec<Status> {
    let mut admin = AdminClient::new(channel);
    let mut refused: Vec<Status> = Vec::new();
    refused.extend(admin.get_status(v1::StatusRequest::default()).await.err());
    refused.extend(admin.watch_status(v1::StatusRequest::default()).await.err());
    refused.extend(admin.get_objects(v1::ObjectsRequest::default()).await.err());
    refused.extend(
        admin
            .create_join_token(v1::JoinTokenRequest::default())
            .await
            .err(),
    );
    refused.extend(
        admin
            .remove_cluster(v1::RemoveClusterRequest::default())
            .await
            .err(),
    );
    refused.extend(
        admin
            .create_admin(v1::CreateAdminRequest::default())
            .await
            .err(),
    );
    refused.extend(
        admin
            .approve_set(v1::ApproveSetRequest::default())
            .await
            .err(),
    );
    refused.extend(
        admin
            .confirm_state(v1::ConfirmStateRequest::default())
            .await
            .err(),
    );
    refused.extend(admin.list_logins(v1::ListLoginsRequest {}).await.err());
    refused.extend(
        admin
            .remove_logins(v1::RemoveLoginsRequest::default())
            .await
            .err(),
    );
    refused.extend(admin.get_ca(v1::GetCaRequest {}).await.err());
    refused.extend(admin.rotate_ca(v1::RotateCaRequest::default()).await.err());
    refused.extend(admin.follow_ca(v1::FollowCaRequest::default()).await.err());
    refused.extend(admin.refresh(v1::RefreshRequest {}).await.err());
    refused
}
