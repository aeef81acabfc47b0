//! The service over which a cluster joins the fleet and renews its certificate.

use muster_proto::v1;
use tonic::{Request, Response};

use super::{Answer, Services, certificate};
use crate::authority::AuthorityError;

#[tonic::async_trait]
impl v1::enrolment_server::Enrolment for Services {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Answer<v1::Certificate> {
        let who = Self::peer(&request)?.address.to_string();
        let v1::EnrolRequest { token, csr } = request.into_inner();
        let granted = self.0.authority.enrol(&token, &csr).await;
        let granted = granted.map_err(|error| self.denied(&who, &error))?;
        self.0
            .sessions
            .end_others(&granted.cluster, &granted.instance);
        Ok(Response::new(certificate(granted)))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Answer<v1::Certificate> {
        let (peer, cluster, instance) = self.agent(&request)?;
        let csr = request.into_inner().csr;
        let granted = self
            .0
            .authority
            .renew(&cluster, &instance, Self::serial(&peer), &csr)
            .await;
        if let Err(AuthorityError::Suspended(why)) = &granted {
            self.0.sessions.end(&cluster);
            self.0
                .view
                .observed
                .update(&cluster, |level| level.refusal = Some(why.clone()));
        }
        let who = peer.address.to_string();
        Ok(Response::new(certificate(
            granted.map_err(|error| self.denied(&who, &error))?,
        )))
    }
}
