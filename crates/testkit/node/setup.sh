#!/bin/bash
# Runs in the container that becomes the node image, after its files are in place.
set -euo pipefail

# What a machine does at its start and a container must not.
rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
  /lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/basic.target.wants/* \
  /lib/systemd/system/sockets.target.wants/*udev* /lib/systemd/system/sockets.target.wants/*initctl* \
  /lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service
echo ReadKMsg=no >>/etc/systemd/journald.conf
systemctl mask systemd-binfmt.service
systemctl enable containerd.service kubelet.service
mkdir -p /etc/kubernetes/manifests /etc/cni/net.d /etc/containerd
ctr oci spec | jq 'del(.process.rlimits)' >/etc/containerd/cri-base.json

# Volumes for those who ask for one.
volume() {
  cat <<YAML
---
apiVersion: v1
kind: PersistentVolume
metadata:
  name: local-$1
spec:
  capacity: {storage: 20Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: standard
  local: {path: /var/local/volume-$1}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: kubernetes.io/os, operator: In, values: [linux]}
YAML
}
for number in $(seq 10); do
  mkdir -p -m 0777 "/var/local/volume-$number"
  volume "$number" >>/kind/manifests/default-storage.yaml
done

# Not unpacked: what a start copies stays small.
containerd >/var/log/containerd.log 2>&1 &
containerd=$!
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
for archive in /images/*.tar; do ctr --namespace k8s.io images import --no-unpack "$archive"; done
ctr --namespace k8s.io images list --quiet
kill $containerd
wait $containerd || true
rm -rf /images /var/log/* /setup.sh
