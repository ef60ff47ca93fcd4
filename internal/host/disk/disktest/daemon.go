package disktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
)

// daemon is a VM without a guest: QEMU's storage daemon opens the files as QEMU would, and the
// suite reads and writes through NBD.
type daemon struct {
	*nbdClient
	qmp    *qmpClient
	cmd    *exec.Cmd
	stderr bytes.Buffer
	dir    string
	once   sync.Once
	waited error

	mu    sync.Mutex // over a switch
	nodes []disk.Node
}

// OpenFiles opens an attachment of files in a storage daemon of its own (Debian package
// qemu-utils). The explicit graph is the one that a VMM must use.
func OpenFiles(t testing.TB, att disk.Attachment) VM {
	_, err := exec.LookPath("qemu-storage-daemon")
	require.NoError(t, err, "apt-get install qemu-utils")
	dir, err := os.MkdirTemp("", "disktest") //nolint:usetesting // with a test's name in it, the socket's path may exceed 107 bytes
	require.NoError(t, err)
	d := &daemon{dir: dir, nodes: att.Nodes}
	t.Cleanup(d.Kill)
	require.NoError(t, d.start(t.Context()))
	return d
}

func (d *daemon) start(ctx context.Context) error {
	qmp, theirs, err := newQMP()
	if err != nil {
		return err
	}
	d.qmp = qmp
	d.cmd = exec.CommandContext(ctx, "qemu-storage-daemon", "--chardev", "socket,id=qmp,fd=3", "--monitor", "chardev=qmp")
	d.cmd.ExtraFiles = []*os.File{theirs}
	d.cmd.Stderr = &d.stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := errors.Join(startOnLastingThread(d.cmd), theirs.Close()); err != nil {
		return err
	}
	if err := d.serve(); err != nil {
		return fmt.Errorf("start storage daemon: %w", err)
	}
	d.nbdClient, err = dialNBD(ctx, d.socket(), "disk")
	return err
}

func (d *daemon) socket() string { return filepath.Join(d.dir, "nbd") }

// lasting is a thread that lives as long as the test's process. A daemon must not outlive a
// killed test, but "the parent died" means to Linux that the thread died which started it.
var lasting = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go holdThread(work)
	return work
})

func holdThread(work <-chan func()) {
	runtime.LockOSThread()
	for f := range work {
		f()
	}
}

func startOnLastingThread(cmd *exec.Cmd) error {
	started := make(chan error)
	lasting() <- func() { started <- cmd.Start() }
	return <-started
}

// serve opens the files bottom first and exports the last one.
func (d *daemon) serve() error {
	if err := d.qmp.greet(); err != nil {
		return err
	}
	for i, n := range d.nodes {
		if err := d.qmp.do("blockdev-add", blockdev(n, i, i > 0)); err != nil {
			return err
		}
	}
	address := object{"type": "unix", "data": object{"path": d.socket()}}
	if err := d.qmp.do("nbd-server-start", object{"addr": address}); err != nil {
		return err
	}
	export := object{"type": "nbd", "id": "disk", "name": "disk", "node-name": nodeName(len(d.nodes) - 1), "writable": true}
	return d.qmp.do("block-export-add", export)
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

// blockdev describes node i. What it stands on is always said: a header is never asked.
func blockdev(n disk.Node, i int, onNext bool) object {
	o := object{
		"driver": n.Format, "node-name": nodeName(i), "read-only": n.ReadOnly, "discard": "unmap",
		"file": object{"driver": "file", "filename": n.Path, "read-only": n.ReadOnly, "discard": "unmap"},
	}
	if n.Format == "raw" {
		return o
	}
	o["backing"] = nil
	if onNext {
		o["backing"] = nodeName(i - 1)
	}
	return o
}

// Switch puts the attachment's last node over the ones in use.
func (d *daemon) Switch(_ context.Context, next disk.Attachment) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	top := len(next.Nodes) - 1
	if !slices.EqualFunc(d.nodes, next.Nodes[:top], func(a, b disk.Node) bool { return a.Path == b.Path }) {
		return fmt.Errorf("switch to %v: it does not stand on %v", next.Nodes, d.nodes)
	}
	if err := d.qmp.do("blockdev-add", blockdev(next.Nodes[top], top, false)); err != nil {
		return err
	}
	err := d.qmp.do("blockdev-snapshot", object{"node": nodeName(top - 1), "overlay": nodeName(top)})
	if err != nil {
		return errors.Join(err, d.qmp.do("blockdev-del", object{"node-name": nodeName(top)}))
	}
	d.nodes = next.Nodes
	return nil
}

// Close ends the daemon in good order.
func (d *daemon) Close() error {
	err := errors.Join(d.Flush(), d.disconnect(), d.qmp.do("quit", nil))
	return errors.Join(err, d.wait())
}

// Kill ends the daemon with signal 9 and removes what it had. It may be repeated.
func (d *daemon) Kill() {
	if d.cmd != nil && d.cmd.Process != nil {
		_ = d.cmd.Process.Kill() // Fails when it is gone, which is as well.
	}
	_ = d.wait() // A killed process has no good exit status.
}

// wait reaps the process and frees what belongs to it, once.
func (d *daemon) wait() error {
	d.once.Do(func() {
		if d.cmd != nil && d.cmd.Process != nil {
			d.waited = d.cmd.Wait()
		}
		if d.waited != nil {
			d.waited = fmt.Errorf("storage daemon: %w: %s", d.waited, d.stderr.Bytes())
		}
		if d.nbdClient != nil {
			_ = d.conn.Close() // Closed already by a disconnect.
		}
		if d.qmp != nil {
			_ = d.qmp.conn.Close()
		}
		_ = os.RemoveAll(d.dir)
	})
	return d.waited
}
