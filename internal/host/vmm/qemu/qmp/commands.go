package qmp

import (
	"context"
	"fmt"
	"os"
)

// FD is a descriptor inside QEMU.
type FD struct {
	Set int `json:"fdset-id"`
	FD  int `json:"fd"`
}

// Path is how QEMU opens a descriptor of the set.
func (f FD) Path() string { return fmt.Sprintf("/dev/fdset/%d", f.Set) }

// Stop freezes the CPUs and drains the disk.
func (c *Client) Stop(ctx context.Context) error { return c.Do(ctx, "stop", nil, nil) }

// Continue runs the CPUs.
func (c *Client) Continue(ctx context.Context) error { return c.Do(ctx, "cont", nil, nil) }

// Status is the run state: "running", "paused", "internal-error" …
func (c *Client) Status(ctx context.Context) (string, error) {
	var out struct {
		Status string `json:"status"`
	}
	err := c.Do(ctx, "query-status", nil, &out)
	return out.Status, err
}

// NewSet asks AddFD for a set of its own: QEMU numbers sets from 0.
const NewSet = -1

// AddFD gives QEMU a descriptor, in a set. label finds it again.
func (c *Client) AddFD(ctx context.Context, f *os.File, set int, label string) (FD, error) {
	args := map[string]any{"opaque": label}
	if set != NewSet {
		args["fdset-id"] = set
	}
	var out FD
	err := c.Do(ctx, "add-fd", args, &out, f)
	return out, err
}

// RemoveFD closes a descriptor given by AddFD, at once or, while the VM is paused, later.
func (c *Client) RemoveFD(ctx context.Context, fd FD) error {
	return c.Do(ctx, "remove-fd", fd, nil)
}

// RemoveSet is RemoveFD of all that a set has. One by one is not the same: QEMU then closes those
// that were removed while it was paused together with the first.
func (c *Client) RemoveSet(ctx context.Context, set int) error {
	return c.Do(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil)
}

// Given is a descriptor given by AddFD.
type Given struct {
	FD
	Label string
}

// FDs lists the descriptors given. Several may have one label, and one that was removed while
// the VM was paused is still there.
func (c *Client) FDs(ctx context.Context) ([]Given, error) {
	var sets []struct {
		ID  int `json:"fdset-id"`
		FDs []struct {
			FD    int    `json:"fd"`
			Label string `json:"opaque"`
		} `json:"fds"`
	}
	if err := c.Do(ctx, "query-fdsets", nil, &sets); err != nil {
		return nil, err
	}
	var out []Given
	for _, set := range sets {
		for _, fd := range set.FDs {
			out = append(out, Given{FD{Set: set.ID, FD: fd.FD}, fd.Label})
		}
	}
	return out, nil
}

// SaveDeviceState writes everything but memory to path. The command's name is historical: it
// has nothing to do with Xen.
func (c *Client) SaveDeviceState(ctx context.Context, path string) error {
	return c.Do(ctx, "xen-save-devices-state", map[string]any{"filename": path, "live": false}, nil)
}

// EnableMigrationEvents makes QEMU tell when an incoming state was loaded.
func (c *Client) EnableMigrationEvents(ctx context.Context) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	args := map[string]any{"capabilities": []capability{{"events", true}}}
	return c.Do(ctx, "migrate-set-capabilities", args, nil)
}

// LoadDeviceState starts loading from an inherited descriptor; a MIGRATION event tells the end.
func (c *Client) LoadDeviceState(ctx context.Context, fd int) error {
	return c.Do(ctx, "migrate-incoming", map[string]any{"uri": fmt.Sprintf("fd:%d", fd)}, nil)
}

// AddNode opens a block node; options are those of -blockdev.
func (c *Client) AddNode(ctx context.Context, options any) error {
	return c.Do(ctx, "blockdev-add", options, nil)
}

// RemoveNode closes a block node that nothing uses.
func (c *Client) RemoveNode(ctx context.Context, node string) error {
	return c.Do(ctx, "blockdev-del", map[string]any{"node-name": node}, nil)
}

// Nodes lists the block nodes, with the file that each has open.
func (c *Client) Nodes(ctx context.Context) (map[string]string, error) {
	var nodes []struct {
		Name string `json:"node-name"`
		File string `json:"file"`
	}
	if err := c.Do(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, n := range nodes {
		out[n.Name] = n.File
	}
	return out, nil
}

// Snapshot makes overlay the new top over node.
func (c *Client) Snapshot(ctx context.Context, node, overlay string) error {
	return c.Do(ctx, "blockdev-snapshot", map[string]any{"node": node, "overlay": overlay}, nil)
}

// Resize sets the size of a node and tells the guest.
func (c *Client) Resize(ctx context.Context, node string, bytes int64) error {
	return c.Do(ctx, "block_resize", map[string]any{"node-name": node, "size": bytes}, nil)
}

// TopNode is the node that device id uses.
func (c *Client) TopNode(ctx context.Context, id string) (string, error) {
	var out []struct {
		QDev     string `json:"qdev"`
		Inserted struct {
			Node string `json:"node-name"`
		} `json:"inserted"`
	}
	if err := c.Do(ctx, "query-block", nil, &out); err != nil {
		return "", err
	}
	for _, b := range out {
		// qdev is the device's id or, for virtio, the path of the backend below it.
		if b.QDev == id || b.QDev == "/machine/peripheral/"+id+"/virtio-backend" {
			return b.Inserted.Node, nil
		}
	}
	return "", nil
}
