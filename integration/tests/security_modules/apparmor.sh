# Runs in the guest, on a kernel with AppArmor.
set -eu
# As Debian's start-up does: it attaches a profile to lxc-start.
apparmor_parser -r -K /etc/apparmor.d/usr.bin.lxc-start
apparmor_parser -r -K /payload/profiles
echo secret > /etc/pouch-secret
mkdir -p /tmp/bundle/rootfs
mount --bind / /tmp/bundle/rootfs

# run NAME [OPTION..]: a container with /payload/NAME.json
run() {
	cp "/payload/$1.json" /tmp/bundle/config.json
	name=$1
	shift
	runlxc run --bundle /tmp/bundle "$@" "$name"
}

for name in confined unconfined unnamed; do
	echo "== $name"
	run $name
done
echo '== missing'
run missing 2>&1 || echo $?

run sleeper --detach
echo '== exec'
runlxc exec sleeper cat /proc/self/attr/current
echo '== exec of another'
runlxc exec --apparmor pouch-other sleeper cat /proc/self/attr/current
echo '== exec unconfined'
runlxc exec --apparmor unconfined sleeper cat /proc/self/attr/current
echo '== exec missing'
runlxc exec --apparmor pouch-missing sleeper cat /proc/self/attr/current 2>&1 || echo $?
echo '== hook'
runlxc exec sleeper cat /dev/shm/hook
runlxc delete --force sleeper
echo '== stopped'
runlxc list --quiet | grep . || echo nothing
