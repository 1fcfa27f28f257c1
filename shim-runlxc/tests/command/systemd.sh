# systemd.sh DIR: a systemd that is pid 1 of namespaces of its own, on this host's cgroups below one of ours. It runs
# DIR/checks.sh, whose output is DIR/output, and ends.
set -eu
dir=$1
name=pouch-systemd-$$

if [ "${2-}" != inside ]; then
	legacy=$(sed -n 's/^[0-9]*:\([^:][^:]*\):.*/\1/p' /proc/self/cgroup | sed 's/^name=//')
	unified=/sys/fs/cgroup
	[ -z "$legacy" ] || unified=/sys/fs/cgroup/unified
	places=$unified
	[ -z "$legacy" ] || for one in $legacy; do places="$places /sys/fs/cgroup/$one"; done
	child= enabled=
	# However this ends: the namespaces' pid 1 dies with unshare, and all in them with it.
	cleanup() {
		trap '' TERM INT
		if [ -n "$child" ]; then
			inside=$(pgrep -P "$child" || true)
			kill -KILL "$child" 2>/dev/null || true
			[ -z "$inside" ] || tail --pid="$inside" -s 0.1 -f /dev/null
		fi
		for place in $places; do
			[ -d "$place/$name" ] || continue
			echo $$ >"$place/cgroup.procs"
			find "$place/$name" -depth -type d -exec rmdir {} \; || true
		done
		for controller in $enabled; do echo "-$controller" >"$unified/cgroup.subtree_control" || true; done
	}
	trap cleanup EXIT
	trap 'exit 143' TERM INT
	for place in $places; do
		[ -d "$place" ] || continue
		mkdir "$place/$name"
		case $place in
		*/cpuset)
			cat "$place/cpuset.cpus" >"$place/$name/cpuset.cpus"
			cat "$place/cpuset.mems" >"$place/$name/cpuset.mems"
			;;
		/sys/fs/cgroup)
			for controller in $(cat "$place/cgroup.controllers"); do
				case " $(cat "$place/cgroup.subtree_control") " in *" $controller "*) continue ;; esac
				echo "+$controller" >"$place/cgroup.subtree_control"
				enabled="$enabled $controller"
			done
			;;
		esac
		echo $$ >"$place/$name/cgroup.procs"
	done
	code=0
	# In the background, so that a signal is heeded at once.
	unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup --propagation private sh "$0" "$dir" inside &
	child=$!
	wait "$child" || code=$?
	child=
	exit $code
fi

mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
legacy=$(sed -n 's/^[0-9]*:\([^:][^:]*\):.*/\1/p' /proc/self/cgroup)
umount -l /sys/fs/cgroup
if [ -z "$legacy" ]; then
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
	mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
	for one in $legacy; do
		place=/sys/fs/cgroup/${one#name=}
		mkdir "$place"
		case $one in
		name=*) mount -t cgroup -o "none,$one" cgroup "$place" ;;
		*) mount -t cgroup -o "$one" cgroup "$place" ;;
		esac
	done
	mkdir /sys/fs/cgroup/unified
	mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
fi
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/systemd/system /run/dbus
cat >/run/systemd/system/dbus.socket <<END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
END
cat >/run/systemd/system/dbus.service <<END
[Unit]
DefaultDependencies=no
[Service]
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile
END
cat >/run/systemd/system/checks.service <<END
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/bin/sh $dir/checks.sh $dir
StandardOutput=file:$dir/output
StandardError=file:$dir/output
END
exec env -i container=pouch PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --system --unit=checks.service --log-target=console --log-level=warning
