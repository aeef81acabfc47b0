//! Listing references and fetching over HTTPS: Git's protocol version 2 (gitprotocol-v2(5)) over smart
//! HTTP.
//!
//! With version 2 the server lists only the requested reference, and a fetch is a single request. libgit2
//! does not handle the connection, because it has no timeouts without `unsafe` and no CA file per
//! repository.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    sync::{Arc, LazyLock},
};

use git2::{Oid, Repository};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderValue},
    redirect,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::{
    address::Login,
    cause::Cause,
    connection::{ConnectionError, Limits, Stop},
    error::Error,
    packet::{Answer, FLUSH, Packet, SEPARATOR, line},
    remote::{Auth, FetchError, RemoteConfig, Wanted, choose},
};

/// The user name that is sent with a token if none is configured. Most Git hosts accept any name.
const TOKEN_USER: &str = "x-access-token";
/// The most commits that are sent as `have` lines, from the tip back. The server needs to know only one of
/// them, and after a force-push it does not know the newest ones.
const HAVES: usize = 256;
/// The most redirects that are followed, for example after a repository was renamed.
const REDIRECTS: usize = 5;

/// The system's CA certificates. They are cached because reading them is slow.
static SYSTEM_ROOTS: LazyLock<Vec<CertificateDer<'static>>> =
    LazyLock::new(|| rustls_native_certs::load_native_certs().certs);

/// Looks up the followed reference and fetches the objects that `repo` lacks, unless the reference points to
/// `have`.
pub(crate) fn fetch(
    config: &RemoteConfig,
    url: &Url,
    login: Option<&Login>,
    (limits, stop): (Limits, &Stop),
    repo: &Repository,
    have: Option<Oid>,
) -> Result<Wanted, FetchError> {
    let remote = config.url.to_string();
    let local = |error: &dyn std::fmt::Display| Error::Protocol {
        remote: remote.clone(),
        source: Cause::Said(format!("the HTTP client can't be made: {error}")),
    };
    let login = login_of(&config.auth, login)?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let tls = tls(&config.auth).map_err(|error| match error {
        TlsError::Ours(error) => error,
        TlsError::Rustls(error) => local(&error),
    })?;
    let secure = url.scheme() == "https";
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(secure)
        .connect_timeout(limits.connect)
        .read_timeout(limits.stall)
        .redirect(redirect::Policy::limited(REDIRECTS))
        // Some hosts serve Git only to user agents that start with `git/`.
        .user_agent(concat!("git/muster-", env!("CARGO_PKG_VERSION")));
    if !secure {
        // Plain HTTP is only allowed for this machine, which needs no proxy.
        builder = builder.no_proxy();
    }
    let client = builder.build().map_err(|error| local(&error))?;
    let session = Session {
        config,
        remote: remote.clone(),
        host,
        login,
        client,
        limits,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| local(&error))?;
    runtime.block_on(async {
        tokio::select! {
            result = session.fetch(url, repo, have) => result,
            () = stop.stopped() => Err(Error::Stopped.into()),
        }
    })
}

struct Session<'a> {
    config: &'a RemoteConfig,
    remote: String,
    host: String,
    login: Option<Login>,
    client: Client,
    limits: Limits,
}

impl Session<'_> {
    async fn fetch(
        &self,
        url: &Url,
        repo: &Repository,
        have: Option<Oid>,
    ) -> Result<Wanted, FetchError> {
        let service = self.greet(url).await?;
        let name = self.config.reference.full_name();
        let mut heads = self.list(&service, Some(&name)).await?;
        if !heads.iter().any(|(head, _)| *head == name) {
            // All references are listed, so that the error can name some that exist.
            heads = self.list(&service, None).await?;
        }
        let heads: Vec<_> = heads
            .iter()
            .map(|(name, id)| (name.as_str(), *id))
            .collect();
        let found = choose(self.config, &heads)?;
        if have == Some(found.commit) {
            return Ok(Wanted {
                id: found.id,
                fetched: false,
            });
        }
        self.download(&service, repo, found.id, have)
            .await
            .map_err(|error| FetchError {
                commit: Some(found.commit),
                error,
            })?;
        Ok(Wanted {
            id: found.id,
            fetched: true,
        })
    }

    /// Finds the repository, following redirects, and returns the URL for requests to it.
    async fn greet(&self, url: &Url) -> Result<Url, Error> {
        const SERVICE: &str = "/info/refs";
        let text = format!(
            "{}{SERVICE}?service=git-upload-pack",
            url.as_str().trim_end_matches('/')
        );
        let greeting = Url::parse(&text).map_err(|error| self.said(error.to_string()))?;
        let response = self.send(self.client.get(greeting)).await?;
        let kind = response.headers().get(CONTENT_TYPE).cloned();
        let mut service = response.url().clone();
        let mut answer = Answer::new(response);
        let expected = HeaderValue::from_static("application/x-git-upload-pack-advertisement");
        let path = service
            .path()
            .strip_suffix(SERVICE)
            .map(|path| format!("{path}/git-upload-pack"));
        let (Some(path), true) = (path, kind == Some(expected)) else {
            let source = Cause::Said("it answers with something else, such as a web page".into());
            return Err(Error::NotFound {
                remote: self.remote.clone(),
                source,
            });
        };
        service.set_path(&path);
        service.set_query(None);
        let mut version_2 = false;
        loop {
            let Packet::Data(data) = self.next(&mut answer).await? else {
                // A flush packet also follows `# service=`.
                if version_2 {
                    return Ok(service);
                }
                continue;
            };
            let text = String::from_utf8_lossy(&data);
            match text.trim_end() {
                "version 2" => version_2 = true,
                "object-format=sha256" => {
                    return Err(self.said("it uses SHA-256 ids, which are not supported".into()));
                }
                text if !version_2 && !text.starts_with("# service=") => {
                    let old = "it does not speak Git's protocol version 2; Git 2.18 or newer does";
                    return Err(self.said(old.into()));
                }
                _ => {}
            }
        }
    }

    /// Lists the references with this prefix, or all references. Annotated tags are also listed as `NAME^{}`.
    async fn list(&self, service: &Url, prefix: Option<&str>) -> Result<Vec<(String, Oid)>, Error> {
        let mut body = line("command=ls-refs\n");
        body += SEPARATOR;
        body += &line("peel\n");
        if let Some(prefix) = prefix {
            body += &line(&format!("ref-prefix {prefix}\n"));
        }
        body += FLUSH;
        let mut answer = self.ask(service, body).await?;
        let mut heads = Vec::new();
        while let Packet::Data(data) = self.next(&mut answer).await? {
            let text = String::from_utf8_lossy(&data).into_owned();
            let wrong = || {
                self.said(format!(
                    "it lists a reference in an unknown format: {text:?}"
                ))
            };
            let id = |text: &str| Oid::from_str(text).map_err(|_| wrong());
            let mut words = text.trim_end().split(' ');
            let (Some(first), Some(name)) = (words.next(), words.next()) else {
                return Err(wrong());
            };
            heads.push((name.to_owned(), id(first)?));
            for word in words {
                if let Some(peeled) = word.strip_prefix("peeled:") {
                    heads.push((format!("{name}^{{}}"), id(peeled)?));
                }
            }
        }
        Ok(heads)
    }

    /// Fetches `want` without the objects reachable from `have`. It does not ask for a thin pack, because the
    /// delta bases of a thin pack would be copied from the mirror, which may be damaged.
    async fn download(
        &self,
        service: &Url,
        repo: &Repository,
        want: Oid,
        have: Option<Oid>,
    ) -> Result<(), Error> {
        let corrupt = |error: git2::Error| self.corrupt(error.into());
        let mut body = line("command=fetch\n");
        body += SEPARATOR;
        body += &line("ofs-delta\n");
        body += &line("no-progress\n");
        body += &line(&format!("want {want}\n"));
        if let Some(have) = have {
            let mut walk = repo.revwalk().map_err(corrupt)?;
            walk.push(have).map_err(corrupt)?;
            for id in walk.take(HAVES) {
                body += &line(&format!("have {}\n", id.map_err(corrupt)?));
            }
        }
        body += &line("done\n");
        body += FLUSH;
        let mut answer = self.ask(service, body).await?;
        // Other sections may come before the pack.
        while !matches!(self.next(&mut answer).await?, Packet::Data(data) if data == b"packfile\n")
        {
        }

        let odb = repo.odb().map_err(corrupt)?;
        let mut pack = odb.packwriter().map_err(corrupt)?;
        while let Packet::Data(data) = self.next(&mut answer).await? {
            match data.split_first() {
                Some((1, data)) => {
                    pack.write_all(data)
                        .map_err(|error| self.corrupt(written(&error)))?;
                }
                Some((3, message)) => {
                    return Err(self.corrupt(Cause::Said(String::from_utf8_lossy(message).into())));
                }
                _ => {}
            }
        }
        pack.commit().map_err(corrupt)?;
        Ok(())
    }

    async fn ask(&self, service: &Url, body: String) -> Result<Answer, Error> {
        let request = self.client.post(service.clone()).body(body);
        let request = request.header(CONTENT_TYPE, "application/x-git-upload-pack-request");
        Ok(Answer::new(self.send(request).await?))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Error> {
        let mut request = request.header("Git-Protocol", "version=2");
        let elsewhere = |url: &Url| url.host_str() != Some(&*self.host);
        if let Some(Login { user, password }) = &self.login {
            request = request.basic_auth(user, password.as_deref());
        }
        let mut request = request.build().map_err(|error| self.failed(error))?;
        if elsewhere(request.url()) {
            // The client drops the login when it is redirected to another host. Later requests go directly to that
            // host, so the login must be removed from them, too.
            request.headers_mut().remove(reqwest::header::AUTHORIZATION);
        }
        let response = self
            .client
            .execute(request)
            .await
            .map_err(|error| self.failed(error))?;
        let remote = self.remote.clone();
        let denied = |hint: String| {
            Err(Error::Denied {
                remote: self.remote.clone(),
                hint,
            })
        };
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if elsewhere(response.url()) => {
                denied(format!(
                    "it redirects to {}, which is not given the token; use that host's address \
                     if it is the right one",
                    response.url().host_str().unwrap_or("another host")
                ))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.login.is_none() => denied(
                "it requires a login; give a file with a token that may read the repository".into(),
            ),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                denied("the token is wrong, has expired, or may not read the repository".into())
            }
            status @ (StatusCode::NOT_FOUND | StatusCode::GONE) => Err(Error::NotFound {
                remote,
                source: Cause::Said(format!("it answers {status}")),
            }),
            status => Err(self.said(format!("it answers {status}"))),
        }
    }

    async fn next(&self, answer: &mut Answer) -> Result<Packet, Error> {
        match answer.next().await.map_err(|error| self.failed(error))? {
            Ok(Packet::Error(text)) => Err(self.corrupt(Cause::Said(text))),
            Ok(Packet::End) => {
                let text = "the answer ended too early".to_owned();
                Err(self.corrupt(Cause::Said(text)))
            }
            Ok(packet) => Ok(packet),
            Err(text) => Err(self.said(text)),
        }
    }

    fn said(&self, text: String) -> Error {
        Error::Protocol {
            remote: self.remote.clone(),
            source: Cause::Said(text),
        }
    }

    fn corrupt(&self, source: Cause) -> Error {
        Error::Corrupt {
            remote: self.remote.clone(),
            source,
        }
    }

    fn failed(&self, error: reqwest::Error) -> Error {
        let error = error.without_url();
        let remote = self.remote.clone();
        let text = match root_of(&error) {
            Root::Certificate(source) => {
                return Error::Certificate {
                    remote,
                    source: Cause::Said(source.to_string()),
                };
            }
            Root::Other(text) => text,
        };
        let host = self.host.clone();
        let source = if error.is_connect() {
            let port = self.config.url.port();
            ConnectionError::Connect {
                host,
                port,
                source: io::Error::other(text),
            }
        } else if error.is_timeout() {
            ConnectionError::Stalled {
                host,
                after: self.limits.stall,
            }
        } else {
            ConnectionError::Broken(Cause::Said(text))
        };
        Error::Unreachable { remote, source }
    }
}

/// The root cause of an error of the HTTP client.
enum Root {
    Certificate(rustls::Error),
    Other(String),
}

fn root_of(error: &(dyn std::error::Error + 'static)) -> Root {
    if let Some(tls @ rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return Root::Certificate(tls.clone());
    }
    // The inner error of an io::Error is not its source().
    let within = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    match (within, error.source()) {
        (Some(inner), _) => root_of(inner),
        (None, Some(inner)) => root_of(inner),
        (None, None) => Root::Other(error.to_string()),
    }
}

fn written(error: &io::Error) -> Cause {
    Cause::Said(format!("the pack can't be written: {error}"))
}

fn secret(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Secret {
        what,
        path: path.to_owned(),
        source,
    }
}

fn login_of(auth: &Auth, login: Option<&Login>) -> Result<Option<Login>, Error> {
    let Some(path) = &auth.token_file else {
        return Ok(login.cloned());
    };
    let what = "the token file";
    let text = fs::read_to_string(path).map_err(|source| secret(what, path, source))?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_control) {
        let source = io::Error::other("it must hold the token and nothing else");
        return Err(secret(what, path, source));
    }
    let user = auth
        .username
        .clone()
        .or_else(|| login.map(|login| login.user.clone()));
    let user = user
        .filter(|user| !user.is_empty())
        .unwrap_or_else(|| TOKEN_USER.to_owned());
    Ok(Some(Login {
        user,
        password: Some(token.to_owned()),
    }))
}

enum TlsError {
    Ours(Error),
    Rustls(rustls::Error),
}

/// Returns a TLS configuration that trusts the system's CAs and the extra ones.
fn tls(auth: &Auth) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(SYSTEM_ROOTS.iter().cloned());
    if roots.is_empty() {
        // A minimal container image has no system CAs.
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = &auth.ca_file {
        let what = "the extra CA file";
        let wrong = |error: io::Error| TlsError::Ours(secret(what, path, error));
        let pem = fs::read(path).map_err(wrong)?;
        let before = roots.len();
        for cert in CertificateDer::pem_slice_iter(&pem) {
            let cert = cert.map_err(|error| wrong(io::Error::other(error.to_string())))?;
            roots
                .add(cert)
                .map_err(|error| wrong(io::Error::other(error)))?;
        }
        if roots.len() == before {
            return Err(wrong(io::Error::other("it has no PEM certificate")));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Rustls)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
