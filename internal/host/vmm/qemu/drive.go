package qemu

import (
	"errors"
	"fmt"
	"os"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

// l2Cache bounds the cache of a qcow2 node's block table. QEMU takes no more than the disk
// needs; this much covers 1 TiB of 64 KiB clusters, so that no lookup goes to the file twice.
const l2Cache = 128 << 20

// openNode is a drive node whose file is open: QEMU gets descriptors and never a path, and
// never follows a backing path that stands in an image's header.
type openNode struct {
	index  int
	format string
	driver string // "file" or "host_device"
	fds    []labelled
}

type labelled struct {
	file  *os.File
	label string
}

func (n openNode) fileName() string   { return fileNode(n.index) }
func (n openNode) formatName() string { return formatNode(n.index) }
func (n openNode) writable() bool     { return len(n.fds) > 1 }

// A drive's node is two of QEMU's: one of the file, and over it one of the format, which the node
// above or the device uses.
func fileNode(index int) string   { return fmt.Sprintf("f%d", index) }
func formatNode(index int) string { return fmt.Sprintf("d%d", index) }

// writeLabel marks the descriptor by which node index is written.
func writeLabel(index int) string { return fmt.Sprintf("f%d-rw", index) }

// openDriveNode opens one node. The writable one is opened twice: once sealed under a new top,
// QEMU goes on with the read-only descriptor and the other one is taken away.
func openDriveNode(index int, n vmm.Node) (openNode, error) {
	info, err := os.Stat(n.Path)
	if err != nil {
		return openNode{}, openError(n.Path, err)
	}
	out := openNode{index: index, format: n.Format, driver: "file"}
	if info.Mode()&os.ModeDevice != 0 {
		out.driver = "host_device"
	}
	modes := []labelledMode{{os.O_RDONLY, fmt.Sprintf("f%d-ro", index)}}
	if !n.ReadOnly {
		modes = append(modes, labelledMode{os.O_RDWR, writeLabel(index)})
	}
	for _, m := range modes {
		f, err := os.OpenFile(n.Path, m.flag, 0)
		if err != nil {
			return openNode{}, errors.Join(openError(n.Path, err), out.close())
		}
		out.fds = append(out.fds, labelled{f, m.label})
	}
	return out, nil
}

type labelledMode struct {
	flag  int
	label string
}

func openError(path string, err error) error {
	kind := fault.Internal
	if errors.Is(err, os.ErrNotExist) {
		kind = fault.NotFound
	}
	return &fault.Error{Kind: kind, Op: "open", Object: "drive node " + path, Err: err}
}

func (n openNode) close() error {
	var errs []error
	for _, fd := range n.fds {
		errs = append(errs, fd.file.Close())
	}
	return errors.Join(errs...)
}

// fileOptions: through the host's page cache, and a guest's flush reaches the file.
func (n openNode) fileOptions(path string) map[string]any {
	return map[string]any{
		"driver":    n.driver,
		"node-name": n.fileName(),
		"filename":  path,
		"read-only": !n.writable(),
		// A node that loses its writer, by a new top over it, goes on read-only.
		"auto-read-only": n.writable(),
		"discard":        "unmap",
		"cache":          map[string]any{"direct": false, "no-flush": false},
	}
}

// formatOptions stands the node on backing ("": on nothing, whatever its header says).
func (n openNode) formatOptions(backing string) map[string]any {
	o := map[string]any{
		"driver":    n.format,
		"node-name": n.formatName(),
		"file":      n.fileName(),
		"read-only": !n.writable(),
		"cache":     map[string]any{"direct": false, "no-flush": false},
	}
	if n.writable() {
		o["discard"] = "unmap"
		o["detect-zeroes"] = "unmap"
	}
	if n.format == "qcow2" {
		o["l2-cache-size"] = l2Cache
		o["backing"] = nil
		if backing != "" {
			o["backing"] = backing
		}
	}
	return o
}
