# Runs below that systemd. DIR has the command as runlxc, and configurations NAME.json of one bundle.
set -eu
cd "$1"
runlxc() { ./runlxc --root /run/runlxc "$@"; }
# run NAME
run() {
	cp "$1.json" bundle/config.json
	runlxc --systemd-cgroup run --detach --bundle bundle "$1" </dev/null >said 2>&1 || { cat said; return 1; }
}
show() { systemctl show -p "$2" "$1" | sed 's/, init [0-9]*$/, init PID/' | sort; }
# another SLICE: a scope of the same name that is not a container's.
mkfifo up
another() {
	# A container that did not heed its SIGTERM is a failed unit.
	systemctl reset-failed lxc-limited.scope 2>/dev/null || true
	{ systemd-run --quiet --slice "$1" --unit lxc-limited.scope --scope sh -c 'echo >up; exec sleep 1000' || echo >up; } 2>/dev/null &
	read -r _ <up
}
if [ -d /sys/fs/cgroup/pids ]; then
	files="memory/%/memory.limit_in_bytes pids/%/pids.max cpu/%/cpu.shares cpu/%/cpu.cfs_quota_us cpuset/%/cpuset.cpus freezer/%/freezer.state"
	words=MemoryLimit,CPUShares
else
	files="%/memory.max %/pids.max %/cpu.weight %/cpu.max %/cpuset.cpus %/cgroup.freeze"
	words=MemoryMax,CPUWeight
fi
scope=pouch.slice/pouch-a.slice/lxc-limited.scope
limits() { for file in $files; do echo "$(cat "/sys/fs/cgroup/$(echo "$file" | sed "s:%:$scope:")")"; done; }
# Whether anything is left of the scope: its state, and its directories.
left() { show lxc-limited.scope LoadState; find /sys/fs/cgroup -name lxc-limited.scope; }

case $(systemctl is-active dbus.service) in active) exit 9 ;; esac
echo '== without a bus'
run limited
show lxc-limited.scope "Slice,Delegate,TasksMax,CPUQuotaPerSecUSec,DevicePolicy,TimeoutStopUSec,ActiveState,Description,$words"
runlxc delete --force limited
left
systemctl start dbus.socket dbus.service
echo '== limits'
run limited
limits
echo '== members'
# In how many hierarchies they are not.
grep -vc "/$scope\$" /proc/"$(runlxc state limited | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')"/cgroup || true
runlxc exec limited grep -vc "/$scope\$" /proc/self/cgroup || true
echo '== reloaded'
systemctl daemon-reload
limits
runlxc exec limited sh -c 'echo >/dev/null && echo allowed'
echo '== updated'
runlxc update --memory 134217728 --pids-limit 33 --cpu-share 2048 limited
show lxc-limited.scope "TasksMax,$words"
systemctl daemon-reload
limits
echo '== bandwidth'
if [ -d /sys/fs/cgroup/pids ]; then
	bandwidth() { echo $(cat "/sys/fs/cgroup/cpu/$scope/cpu.cfs_quota_us" "/sys/fs/cgroup/cpu/$scope/cpu.cfs_period_us"); }
else
	bandwidth() { cat "/sys/fs/cgroup/$scope/cpu.max"; }
fi
runlxc update --cpu-period 50000 limited
bandwidth
runlxc update --cpu-quota 25000 limited
systemctl daemon-reload
bandwidth
echo '== paused'
runlxc pause limited
runlxc state limited | grep -o '"status": *"[a-z]*"'
runlxc resume limited
echo '== deleted'
runlxc delete --force limited
left
echo '== stopped by systemd'
run limited
systemctl stop lxc-limited.scope
runlxc state limited | grep -o '"status": *"[a-z]*"'
runlxc delete limited
left
echo '== of another'
another pouch-a.slice
run limited || echo "code $?"
show lxc-limited.scope ActiveState
systemctl stop lxc-limited.scope
echo '== of another in another slice'
another pouch-b.slice
run limited || echo "code $?"
show lxc-limited.scope ActiveState,Slice
systemctl stop lxc-limited.scope
echo '== of another meanwhile'
run limited
systemctl stop lxc-limited.scope
another pouch-a.slice
runlxc update --pids-limit 5 limited || echo "code $?"
runlxc delete --force limited
show lxc-limited.scope ActiveState
systemctl stop lxc-limited.scope
show lxc-limited.scope LoadState
echo '== without a path'
run plain
runlxc exec plain cat /proc/self/cgroup | grep -o '/system.slice/runlxc-plain.scope' | sort -u
runlxc delete --force plain
echo '== wrong'
run wrong || echo "code $?"
run property || echo "code $?"
run slice || echo "code $?"
find /sys/fs/cgroup -name '*lxc-wrong*'
ls /run/runlxc
echo '== end'
