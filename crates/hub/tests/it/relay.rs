//! A relay between an agent's stream and a hub. It forwards every message and records those of the agent. It can also
//! insert messages that neither side understands, as a newer build would send.

use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use muster_agent::dial;
use muster_proto::v1::{
    self,
    agents_client::AgentsClient,
    agents_server::{Agents, AgentsServer},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};

use crate::{agents::Badge, fixture::Hub};

/// The messages of the agent, in order.
pub(crate) type Said = Arc<Mutex<Vec<v1::AgentMessage>>>;

struct Relay {
    hub: Channel,
    said: Said,
    /// True to insert a message of an unknown kind after each message.
    babbles: bool,
}

/// Starts a relay to the hub. Returns a channel to the relay, and the messages that it records.
pub(crate) async fn relay(hub: &Hub, badge: &Badge, babbles: bool) -> (Channel, Said) {
    let channel = dial(&hub.address(), &badge.trust, Some(&badge.credentials)).await;
    let said = Said::default();
    let relay = Relay {
        hub: channel.unwrap(),
        said: Arc::clone(&said),
        babbles,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(AgentsServer::new(relay));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let endpoint = Endpoint::from_shared(address).unwrap();
    (endpoint.connect().await.unwrap(), said)
}

#[tonic::async_trait]
impl Agents for Relay {
    type FollowStream = ReceiverStream<Result<v1::HubMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (said, babbles) = (Arc::clone(&self.said), self.babbles);
        let (up, upward) = mpsc::channel(64);
        let mut from_agent = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(message)) = from_agent.next().await {
                said.lock().unwrap().push(message.clone());
                let unknown = babbles.then_some(v1::AgentMessage { message: None });
                for message in [Some(message), unknown].into_iter().flatten() {
                    if up.send(message).await.is_err() {
                        return;
                    }
                }
            }
        });
        let mut agents = AgentsClient::new(self.hub.clone());
        let answer = agents.follow(ReceiverStream::new(upward)).await?;
        let mut from_hub = answer.into_inner();
        let (down, downward) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Some(message) = from_hub.next().await {
                let unknown = babbles.then_some(Ok(v1::HubMessage { message: None }));
                for message in [Some(message), unknown].into_iter().flatten() {
                    if down.send(message).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(downward)))
    }

    async fn check(&self, request: Request<v1::Hello>) -> Result<Response<v1::Checked>, Status> {
        AgentsClient::new(self.hub.clone()).check(request).await
    }
}
