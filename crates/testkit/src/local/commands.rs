//! Builds the command lines of a control plane's programs.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::{Cluster, Component};
use crate::credentials;

/// kwok's stages for nodes, pods and volumes.
const STAGES: &str = include_str!("../kwok.yaml");
/// The audit policy, which says whose requests are logged.
const AUDIT: &str = include_str!("../audit.yaml");

impl Cluster {
    pub(super) fn command(&self, component: Component) -> anyhow::Result<Command> {
        let program = self.programs.get(&component);
        let program = program.with_context(|| {
            format!(
                "{} is not part of the cluster {}",
                component.name(),
                self.name()
            )
        })?;
        let mut command = Command::new(program);
        command.current_dir(self.directory()).args(match component {
            Component::Etcd => self.etcd(),
            Component::ApiServer => {
                let mut args = self.api_server();
                if self.options.audit {
                    let policy = self.directory().join("audit.yaml");
                    credentials::write(&policy, AUDIT)?;
                    args.extend(self.audit(&policy));
                }
                args
            }
            Component::ControllerManager => self.controller_manager(),
            Component::Scheduler => self.scheduler(),
            Component::Kwok => {
                let stages = self.directory().join("kwok.yaml");
                credentials::write(&stages, STAGES)?;
                self.kwok(&stages)
            }
        });
        Ok(command)
    }

    /// Returns etcd's arguments. etcd requires a client certificate, so other users of the machine can't connect.
    fn etcd(&self) -> Vec<String> {
        let (certificate, key) = self.credentials.server();
        let (certificate, key) = (certificate.display(), key.display());
        let authority = self.credentials.authority();
        let authority = authority.display();
        let client = format!("https://127.0.0.1:{}", self.ports.etcd);
        vec![
            format!("--data-dir={}", self.directory().join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            // There is no peer, but etcd can't be told not to listen for one.
            "--listen-peer-urls=https://127.0.0.1:0".to_owned(),
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={authority}"),
            format!("--cert-file={certificate}"),
            format!("--key-file={key}"),
            "--peer-client-cert-auth".to_owned(),
            format!("--peer-trusted-ca-file={authority}"),
            format!("--peer-cert-file={certificate}"),
            format!("--peer-key-file={key}"),
            // The data need not survive a crash of the machine.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ]
    }

    fn api_server(&self) -> Vec<String> {
        let (certificate, key) = self.credentials.server();
        let (client_certificate, client_key) = self.credentials.admin();
        let authority = self.credentials.authority();
        let authority = authority.display();
        let token_key = self.credentials.service_account_key();
        let token_public_key = self.credentials.service_account_public_key();
        vec![
            format!("--etcd-servers=https://127.0.0.1:{}", self.ports.etcd),
            format!("--etcd-cafile={authority}"),
            format!("--etcd-certfile={}", client_certificate.display()),
            format!("--etcd-keyfile={}", client_key.display()),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.ports.api_server),
            // No real pod runs, so the Service `kubernetes` needs no endpoint, and an endpoint must not have a loopback
            // address.
            "--advertise-address=127.0.0.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--tls-cert-file={}", certificate.display()),
            format!("--tls-private-key-file={}", key.display()),
            format!("--client-ca-file={authority}"),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", token_public_key.display()),
            format!("--service-account-signing-key-file={}", token_key.display()),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--profiling=false".to_owned(),
        ]
    }

    /// Returns the API server's arguments for the audit log. The log is written in batches, so that requests don't wait
    /// for it.
    fn audit(&self, policy: &Path) -> Vec<String> {
        vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", self.audit_log().display()),
            "--audit-log-mode=batch".to_owned(),
            "--audit-log-batch-buffer-size=100000".to_owned(),
            "--audit-log-batch-max-wait=1s".to_owned(),
            "--audit-log-maxsize=2000".to_owned(),
        ]
    }

    fn controller_manager(&self) -> Vec<String> {
        vec![
            self.kubeconfig_flag(),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            format!("--root-ca-file={}", self.credentials.authority().display()),
            format!(
                "--service-account-private-key-file={}",
                self.credentials.service_account_key().display()
            ),
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
            "--profiling=false".to_owned(),
        ]
    }

    fn scheduler(&self) -> Vec<String> {
        vec![
            self.kubeconfig_flag(),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
        ]
    }

    fn kwok(&self, stages: &Path) -> Vec<String> {
        vec![
            self.kubeconfig_flag(),
            format!("--config={}", stages.display()),
            "--manage-all-nodes=true".to_owned(),
            // Without Leases, the controllers consider the nodes lost after 40 s.
            "--node-lease-duration-seconds=40".to_owned(),
            format!("--server-address=127.0.0.1:{}", self.ports.kwok),
            "--cidr=10.244.0.0/16".to_owned(),
            "--node-ip=10.0.0.1".to_owned(),
            "--v=WARN".to_owned(),
        ]
    }

    fn kubeconfig_flag(&self) -> String {
        format!("--kubeconfig={}", self.kubeconfig_path().display())
    }
}
