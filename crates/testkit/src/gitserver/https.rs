//! Serves Git repositories with nginx and `git http-backend`, with TLS and a token.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::{PORTS, START, listening, output, program, write};
use crate::ports;
use crate::process::Process;
use crate::scratch::Scratch;

/// The password that a client must send, with any of the known user names.
const TOKEN: &str = "correct-horse-battery-staple";

/// A Git server for a directory of repositories: HTTPS on `127.0.0.1` and `localhost`, and plain HTTP on another port.
/// It stops when it is dropped.
#[derive(Debug)]
pub struct HttpsGit {
    nginx: Option<Process>,
    _cgi: Process,
    address: Ipv4Addr,
    port: u16,
    plain_port: u16,
    scratch: Scratch,
}

impl HttpsGit {
    /// Serves the repositories in this directory, with a certificate of a new CA.
    ///
    /// # Errors
    /// Fails if nginx, fcgiwrap or git are missing and cannot be installed, or do not start.
    pub fn start(root: &Path) -> anyhow::Result<Self> {
        Self::start_at(root, Ipv4Addr::LOCALHOST)
    }

    /// Serves the repositories also on another address of this machine, which [`HttpsGit::url`] then returns.
    ///
    /// # Errors
    /// Fails like [`HttpsGit::start`].
    pub fn start_at(root: &Path, address: Ipv4Addr) -> anyhow::Result<Self> {
        let scratch = Scratch::temporary("https-git")?;
        let directory = scratch.path();
        certificates(directory, address)?;
        // nginx requires a known user name; only the token matters.
        let users = ["x-access-token", "ada"].map(|user| format!("{user}:{{PLAIN}}{TOKEN}\n"));
        write(&directory.join("users"), &users.concat())?;
        write(&directory.join("token"), &format!("{TOKEN}\n"))?;

        let socket = directory.join("cgi.sock");
        let mut command = Command::new(program("fcgiwrap", "fcgiwrap")?);
        command.arg("-s").arg(format!("unix:{}", socket.display()));
        let cgi = Process::spawn("fcgiwrap", command, &directory.join("cgi.log"))?;
        let end = std::time::Instant::now() + START;
        while !socket.exists() {
            cgi.check()?;
            anyhow::ensure!(std::time::Instant::now() < end, "fcgiwrap makes no socket");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }

        let backend = output(Command::new("git").arg("--exec-path"))? + "/git-http-backend";
        for attempt in 1.. {
            let (port, plain_port) = (ports::free()?, ports::free()?);
            let settings = settings(directory, root, &backend, address, (port, plain_port));
            write(&directory.join("nginx.conf"), &settings)?;
            match nginx(directory, port) {
                Ok(nginx) => {
                    return Ok(Self {
                        nginx: Some(nginx),
                        _cgi: cgi,
                        address,
                        port,
                        plain_port,
                        scratch,
                    });
                }
                Err(error) if attempt == PORTS => return Err(error),
                Err(_) => {}
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// The URL of a repository in the served directory.
    pub fn url(&self, name: &str) -> String {
        format!("https://{}:{}/{name}", self.address, self.port)
    }

    /// The URL of a repository without TLS.
    pub fn plain_url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.plain_port)
    }

    /// The token that gives access to every repository.
    pub fn token(&self) -> &'static str {
        TOKEN
    }

    /// The path of a file with the token.
    pub fn token_file(&self) -> PathBuf {
        self.scratch.path().join("token")
    }

    /// The path of the CA's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.scratch.path().join("ca.pem")
    }

    /// Stops nginx, so that connections are refused.
    pub fn take_down(&mut self) {
        self.nginx = None;
    }

    /// Starts nginx again on the same port.
    ///
    /// # Errors
    /// Fails if nginx does not start, for example because another process has taken the port.
    pub fn bring_up(&mut self) -> anyhow::Result<()> {
        self.nginx = Some(nginx(self.scratch.path(), self.port)?);
        Ok(())
    }

    /// Pauses nginx (SIGSTOP): the kernel accepts connections, and nothing answers.
    ///
    /// # Errors
    /// Fails if nginx is down or can't be signalled.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.nginx.as_ref().context("nginx is down")?.pause()
    }

    /// Resumes a paused nginx.
    ///
    /// # Errors
    /// Fails if nginx is down or can't be signalled.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.nginx.as_ref().context("nginx is down")?.resume()
    }
}

fn nginx(directory: &Path, port: u16) -> anyhow::Result<Process> {
    let mut command = Command::new(program("nginx", "nginx-light")?);
    command.arg("-e").arg("stderr").arg("-p").arg(directory);
    command.arg("-c").arg(directory.join("nginx.conf"));
    let nginx = Process::spawn("nginx", command, &directory.join("nginx.log"))?;
    listening(&nginx, port)?;
    Ok(nginx)
}

fn settings(
    directory: &Path,
    root: &Path,
    backend: &str,
    address: Ipv4Addr,
    (port, plain_port): (u16, u16),
) -> String {
    let (dir, root) = (directory.display(), root.display());
    let elsewhere = match address {
        Ipv4Addr::LOCALHOST => String::new(),
        address => format!("listen {address}:{port} ssl;"),
    };
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("  {what}_temp_path {dir}/{what};\n"))
        .concat();
    format!(
        r#"
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
  access_log off;
{temporary}
  client_max_body_size 0;
  auth_basic "git";
  auth_basic_user_file {dir}/users;
  ssl_certificate {dir}/server.pem;
  ssl_certificate_key {dir}/server.key;
  server {{
    listen 127.0.0.1:{port} ssl;
    listen 127.0.0.1:{plain_port};
    {elsewhere}
    location / {{
      fastcgi_pass unix:{dir}/cgi.sock;
      fastcgi_buffering off;
      fastcgi_param SCRIPT_FILENAME {backend};
      fastcgi_param GIT_PROJECT_ROOT {root};
      fastcgi_param GIT_HTTP_EXPORT_ALL "";
      fastcgi_param PATH_INFO $uri;
      fastcgi_param QUERY_STRING $query_string;
      fastcgi_param REQUEST_METHOD $request_method;
      fastcgi_param CONTENT_TYPE $content_type;
      fastcgi_param CONTENT_LENGTH $content_length;
      fastcgi_param REMOTE_USER $remote_user;
      fastcgi_param REMOTE_ADDR $remote_addr;
      fastcgi_param SERVER_PROTOCOL $server_protocol;
    }}
  }}
}}
"#
    )
}

/// Writes a CA certificate, and the server's certificate and key that it signs.
fn certificates(directory: &Path, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "CA of a test");
    let key = KeyPair::generate()?;
    write(&directory.join("ca.pem"), &params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    let mut names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    if address != Ipv4Addr::LOCALHOST {
        names.push(address.to_string());
    }
    let key = KeyPair::generate()?;
    let server = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    write(&directory.join("server.pem"), &server.pem())?;
    write(&directory.join("server.key"), &key.serialize_pem())
}
