# Runs in a guest whose cgroups are of version 2 alone: stock containerd, and an image per systemd.
set -eu
mkdir -p /images /run/c
mount -t ext4 /dev/vdb /images
containerd --root /tmp/c --state /run/c --address /run/c/sock >/tmp/containerd.log 2>&1 &
ctr() {
	command ctr --address /run/c/sock "$@"
}
until ctr version >/dev/null 2>&1; do sleep 0.1; done

for image in /images/*/etc/debian_version; do
	root=${image%/etc/debian_version}
	name=${root#/images/}
	echo "== $name"
	ctr run --rm --rootfs --runtime io.containerd.runlxc.v2 \
		--annotation org.pouch.rich.mode=systemd --annotation org.pouch.rich.user=daemon \
		--annotation org.pouch.rich.services=cron --env "PATH=$PATH" "$root" "$name" /bin/sh -c "
			trap 'echo bye; exit 7' TERM
			systemctl --version | grep -o '^systemd [0-9]*'
			id -un
			cat /proc/1/comm
			until pgrep -x cron >/dev/null; do sleep 1; done
			echo active
			cat /proc/self/cgroup
			echo up
			while :; do sleep 1 & wait; done" >/tmp/out 2>&1 &
	run=$!
	until grep -q '^up$' /tmp/out; do
		kill -0 $run || { cat /tmp/out /tmp/containerd.log; exit 1; }
		sleep 0.1
	done
	ctr tasks kill "$name"
	wait $run && code=0 || code=$?
	cat /tmp/out
	echo "code $code"
done
