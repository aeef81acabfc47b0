//! The service for the agents' streams.

use std::sync::Arc;

use muster_proto::{PROTOCOL_VERSION, VERSION, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Answer, OUTGOING, Services};
use crate::session::Sessions;

#[tonic::async_trait]
impl v1::agents_server::Agents for Services {
    type FollowStream = ReceiverStream<Result<v1::HubMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Answer<Self::FollowStream> {
        let caller = self.caller(&request).await?;
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        tokio::spawn(Arc::clone(&self.0.sessions).run(caller, request.into_inner(), outgoing));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn check(&self, request: Request<v1::Hello>) -> Answer<v1::Checked> {
        let caller = self.caller(&request).await?;
        if let Err((reason, status)) = Sessions::check(&caller, request.get_ref()) {
            let who = caller.address.to_string();
            self.0.metrics.refuse(reason, &who, status.message());
            return Err(status);
        }
        Ok(Response::new(v1::Checked {
            protocol: PROTOCOL_VERSION,
            version: VERSION.to_owned(),
        }))
    }
}
