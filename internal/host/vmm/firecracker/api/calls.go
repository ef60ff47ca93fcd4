package api

import (
	"context"
	"net/http"
	"net/url"
)

// Instance tells the VM's state.
func (c *Client) Instance(ctx context.Context) (in Instance, err error) {
	return in, c.do(ctx, quick, http.MethodGet, "/", nil, &in)
}

// Version tells Firecracker's.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v Version
	err := c.do(ctx, quick, http.MethodGet, "/version", nil, &v)
	return v.Version, err
}

// SetMachine is for a VM that has not started, as are the next four.
func (c *Client) SetMachine(ctx context.Context, m MachineConfig) error {
	return c.do(ctx, quick, http.MethodPut, "/machine-config", m, nil)
}

// SetBootSource gives the kernel.
func (c *Client) SetBootSource(ctx context.Context, b BootSource) error {
	return c.do(ctx, quick, http.MethodPut, "/boot-source", b, nil)
}

// AddDrive gives a disk.
func (c *Client) AddDrive(ctx context.Context, d Drive) error {
	return c.do(ctx, quick, http.MethodPut, "/drives/"+url.PathEscape(d.ID), d, nil)
}

// AddNetworkInterface gives a tap.
func (c *Client) AddNetworkInterface(ctx context.Context, n NetworkInterface) error {
	return c.do(ctx, quick, http.MethodPut, "/network-interfaces/"+url.PathEscape(n.ID), n, nil)
}

// SetEntropy gives a virtio-rng device.
func (c *Client) SetEntropy(ctx context.Context, e Entropy) error {
	return c.do(ctx, quick, http.MethodPut, "/entropy", e, nil)
}

// Start boots the VM.
func (c *Client) Start(ctx context.Context) error {
	return c.do(ctx, long, http.MethodPut, "/actions", Action{InstanceStart}, nil)
}

// Pause stops the vCPUs of a started VM.
func (c *Client) Pause(ctx context.Context) error {
	return c.do(ctx, quick, http.MethodPatch, "/vm", VMState{StatePaused}, nil)
}

// Resume lets them go on.
func (c *Client) Resume(ctx context.Context) error {
	return c.do(ctx, quick, http.MethodPatch, "/vm", VMState{StateResumed}, nil)
}

// PatchDrive makes a started VM open a drive's file again.
func (c *Client) PatchDrive(ctx context.Context, d DrivePatch) error {
	return c.do(ctx, quick, http.MethodPatch, "/drives/"+url.PathEscape(d.ID), d, nil)
}

// PatchNetworkInterface changes the rates of a started VM.
func (c *Client) PatchNetworkInterface(ctx context.Context, n NetworkInterfacePatch) error {
	return c.do(ctx, quick, http.MethodPatch, "/network-interfaces/"+url.PathEscape(n.ID), n, nil)
}

// CreateSnapshot is for a paused VM.
func (c *Client) CreateSnapshot(ctx context.Context, s SnapshotCreate) error {
	return c.do(ctx, long, http.MethodPut, "/snapshot/create", s, nil)
}

// LoadSnapshot is for a process that has configured nothing; a failure ends it.
func (c *Client) LoadSnapshot(ctx context.Context, s SnapshotLoad) error {
	return c.do(ctx, long, http.MethodPut, "/snapshot/load", s, nil)
}
