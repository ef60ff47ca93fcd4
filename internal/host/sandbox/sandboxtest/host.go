package sandboxtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
)

// Template is the template that every Host has.
const Template = "base"

// installations numbers this process's, so that their names on the host differ.
var installations atomic.Int32

// Host is one machine under test.
type Host struct {
	Data   paths.Data
	Images *image.Store
	// Runtime is the best one of the host, and Runtimes are all.
	Runtime  *Runtime
	Runtimes []*Runtime
	// UIDs lie outside of what installations use: nothing else runs under them.
	UIDs uids.Block
	// Network of the agent that runs now.
	Network *network.Manager
	// Installation is in every name on the host.
	Installation string
	Log          *slog.Logger

	t  testing.TB
	ns *namespace
}

// New makes a host whose runtimes are of the kinds, best first, or one VM; everything of it goes
// with the test.
func New(t testing.TB, kinds ...Kind) *Host {
	t.Helper()
	require.Zero(t, os.Geteuid(), "these tests make network namespaces and taps: run them as root")
	dir, err := os.MkdirTemp("", "roost-sb-") //nolint:usetesting // short: sockets lie below it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	n := int(installations.Add(1))
	h := &Host{
		Data: paths.Data(dir), UIDs: block(n),
		Installation: installationID(n), Log: slog.New(slog.NewTextHandler(io.Discard, nil)), t: t,
	}
	if len(kinds) == 0 {
		kinds = []Kind{VM}
	}
	for _, k := range kinds {
		h.Runtimes = append(h.Runtimes, newRuntime(t, k, filepath.Join(dir, "builds", k.Name)))
	}
	h.Runtime = h.Runtimes[0]
	h.ns, err = newNamespace()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.ns.close()) })
	require.NoError(t, writeTemplate(h.Data.Images()))
	h.Images, err = image.Open(h.Data.Images(), h.Log)
	require.NoError(t, err)
	h.Connect()
	t.Cleanup(func() {
		for _, rt := range h.Runtimes {
			rt.killAll()
		}
		require.NoError(t, h.Network.Uninstall(context.WithoutCancel(t.Context())))
	})
	return h
}

// block is for the n-th host of this process: tests of other processes, which run beside, use
// others, or each would end what it finds of theirs.
func block(n int) uids.Block {
	const processes, hosts = 512, 1000
	return uids.Block(2_000_000 + (os.Getpid()%processes*hosts+n%hosts+1)*uids.BlockSize)
}

func installationID(n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d", os.Getpid(), n))
	return hex.EncodeToString(sum[:2])
}

// All are the host's runtimes as its manager takes them.
func (h *Host) All() []runtime.Runtime {
	var out []runtime.Runtime
	for _, rt := range h.Runtimes {
		out = append(out, rt)
	}
	return out
}

// Connect starts the network of a (new) agent.
func (h *Host) Connect() {
	h.t.Helper()
	var err error
	h.Network, err = network.New(network.Options{
		Installation: h.Installation, StateDir: string(h.Data), HostNS: h.ns.path(), PoolSize: -1,
		Resolvers: []string{"192.0.2.53"}, Logger: h.Log,
	})
	require.NoError(h.t, err)
	require.NoError(h.t, h.Network.Start(h.t.Context()))
}

// HostNS is the path of the network namespace that stands for the machine's own.
func (h *Host) HostNS() string { return h.ns.path() }

// Slots are the names of the slots that exist.
func (h *Host) Slots() []string {
	h.t.Helper()
	found, err := filepath.Glob("/run/netns/roost-" + h.Installation + "-*")
	require.NoError(h.t, err)
	// A port's namespace goes with its slot's.
	return slices.DeleteFunc(found, func(name string) bool { return strings.HasSuffix(name, "p") })
}

// writeTemplate writes a template of a few bytes as package image keeps them.
func writeTemplate(dir string) error {
	blob := filepath.Join("blobs", hex.EncodeToString(make([]byte, 32)))
	if err := os.MkdirAll(filepath.Join(dir, blob), 0o700); err != nil {
		return err
	}
	file := func(name, content string) image.File {
		path := filepath.Join(blob, name)
		_ = os.WriteFile(filepath.Join(dir, path), []byte(content), 0o600)
		sum := sha256.Sum256([]byte(content))
		return image.File{Name: name, Path: path, SizeBytes: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	}
	digest := sha256.Sum256([]byte(Template))
	t := image.Template{
		Name: Template, Digest: hex.EncodeToString(digest[:]), CreatedAt: time.Now().UTC(), DefaultUser: "user",
		Kernel: file("vmlinuz", "kernel"), Modules: []image.File{file("virtio.ko", "module")},
		Disk: file("disk.ext4", "disk"), DiskBytes: 1 << 30, Tree: file("tree.erofs", "tree"),
	}
	raw, err := json.Marshal(t)
	if err != nil {
		return err
	}
	for _, path := range []string{"templates/" + Template + ".json", "manifests/" + t.Digest + ".json"} {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(full, raw, 0o600); err != nil {
			return err
		}
	}
	return nil
}
