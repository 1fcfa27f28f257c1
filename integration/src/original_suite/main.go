// Runs containerd's own test suite for snapshotters, as it is, against a socket: main NAME SOCKET SNAPSHOTTER.
// NAME is what the suite takes the snapshotter for: "overlayfs" is not asked to rename directories of lower layers.
package main

import (
	"context"
	"os"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	name, socket, snapshotter := os.Args[1], os.Args[2], os.Args[3]
	// The rest would be flags of the testing package.
	os.Args = []string{os.Args[0], "-test.v", "-test.timeout=300s"}
	connect := func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		return proxy.NewSnapshotter(api.NewSnapshotsClient(connection), snapshotter), connection.Close, nil
	}
	suite := testing.InternalTest{Name: "Suite", F: func(t *testing.T) { testsuite.SnapshotterSuite(t, name, connect) }}
	all := func(string, string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{suite}, nil, nil)
}
