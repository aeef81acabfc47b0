//! Generates the fleet repository of the scenarios.

use muster_testkit::repository::{self, Files, document};

/// The clusters, each with its region.
pub const CLUSTERS: [(&str, &str); 3] = [
    ("eu-west-1", "eu-west"),
    ("eu-north-1", "eu-north"),
    ("us-east-1", "us-east"),
];
/// The cluster in which the hub runs.
pub const HUB_CLUSTER: &str = "eu-west-1";
/// The node port of `hello`.
pub const PORT: u16 = 30080;

/// The app of the scenarios: `hello` serves a text and its region over HTTP.
#[derive(Debug, Clone)]
pub struct App {
    /// The image's tag: `1` and `2` serve, `crash` exits immediately, and `missing` is in a registry that refuses every
    /// connection.
    pub tag: &'static str,
    /// The text that the app serves.
    pub says: String,
    /// The number of pods.
    pub replicas: u32,
}

impl App {
    /// The image's name.
    pub const IMAGE: &str = "example.test/hello";

    /// Returns the app with one pod of version 1 that serves this text.
    pub fn saying(says: &str) -> Self {
        Self {
            tag: "1",
            says: says.to_owned(),
            replicas: 1,
        }
    }

    /// Returns the whole fleet repository with this app.
    pub fn fleet(&self) -> Files {
        let spec = "{contacts: [{name: Platform, email: platform@example.com}]}";
        let mut files = repository::fleet("e2e", spec, CLUSTERS);
        files.insert(
            "apps/hello/app.yaml".to_owned(),
            document("App", "hello", "{tier: basic, mode: active-active}"),
        );
        files.insert(
            "apps/hello/templates/hello.yaml".to_owned(),
            self.template(),
        );
        files
    }

    fn template(&self) -> String {
        let Self {
            tag,
            says,
            replicas,
        } = self;
        format!(
            r#"apiVersion: v1
kind: Namespace
metadata: {{name: hello}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: hello, namespace: hello}}
spec:
  replicas: {replicas}
  progressDeadlineSeconds: 20
  selector: {{matchLabels: {{app: hello}}}}
  template:
    metadata: {{labels: {{app: hello}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: hello
          image: {image}:{tag}
          env:
            - {{name: STANDIN_SAYS, value: "{says} from {{{{ region.name }}}}"}}
          ports: [{{containerPort: 8080}}]
          readinessProbe:
            httpGet: {{path: /, port: 8080}}
            periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata: {{name: hello, namespace: hello}}
spec:
  type: NodePort
  selector: {{app: hello}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {PORT}}}]
"#,
            image = match *tag {
                "missing" => "127.0.0.1:1/hello",
                _ => Self::IMAGE,
            },
        )
    }
}
