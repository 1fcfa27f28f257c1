# Runs in the guest, on a kernel with SELinux and no policy yet; it stays permissive.
set -eu
mount -t selinuxfs selinuxfs /sys/fs/selinux
checkpolicy -M -U allow -c 33 -o /tmp/policy /payload/policy.conf > /tmp/checkpolicy.log 2>&1 ||
	{ cat /tmp/checkpolicy.log; exit 1; }
# The kernel takes a policy in one write only.
dd if=/tmp/policy of=/sys/fs/selinux/load bs=1M status=none
mkdir -p /tmp/bundle/rootfs
mount --bind / /tmp/bundle/rootfs

# run NAME [OPTION..]: a container with /payload/NAME.json
run() {
	cp "/payload/$1.json" /tmp/bundle/config.json
	name=$1
	shift
	runlxc run --bundle /tmp/bundle "$@" "$name"
}

echo '== labelled'
run labelled
echo '== wrong'
run wrong 2>&1 || echo $?
run sleeper --detach
echo '== exec'
runlxc exec sleeper sh -c "tr -d '\0' < /proc/self/attr/current; echo"
echo '== exec of another'
runlxc exec --process-label system_u:system_r:other_t:s0 sleeper \
	sh -c "tr -d '\0' < /proc/self/attr/current; echo"
runlxc delete --force sleeper
