package server

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"time"

	"connectrpc.com/connect"

	processpb "github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	guestpb "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
	"github.com/roosthq/roost/internal/guest/restore"
)

const (
	warmToken   = "warm-up"
	warmTimeout = 20 * time.Second
)

// Warm runs a throwaway guest through what the first seconds after a restore need: a Restore, a
// Thaw and a command, over a loopback connection. A VM's memory is saved after this, so the
// code, page tables and heap they touch are shared by all sandboxes instead of being faulted
// in by each. It changes nothing outside a cgroup and a folder of its own.
func Warm(ctx context.Context, c Config) error {
	ctx, cancel := context.WithTimeout(ctx, warmTimeout)
	defer cancel()
	root, err := os.MkdirTemp("/run", "roost-warm-") // memory, not the disk
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(root) }()
	c.ControlToken, c.Root, c.System, c.Device = warmToken, root, restore.Process{}, ""
	c.CgroupRoot += "/roost-warm"
	s, err := New(ctx, c)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(c.CgroupRoot) }()
	defer func() { _ = s.Close() }()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = s.Serve(l) }()
	if err := exercise(ctx, "http://"+l.Addr().String(), c.DefaultUser); err != nil {
		return err
	}
	runtime.GC() // start with a clean, already touched heap
	return nil
}

// exercise does all of it twice: as HTTP/1.1 in JSON and as h2c in protobuf.
func exercise(ctx context.Context, url, user string) error {
	for generation, h2 := range []bool{false, true} {
		client, options := warmClient(h2)
		err := exerciseOnce(ctx, client, url, user, uint64(generation+1), options...)
		client.CloseIdleConnections()
		if err != nil {
			return err
		}
	}
	return nil
}

func warmClient(h2 bool) (*http.Client, []connect.ClientOption) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols, DisableCompression: true}}
	if h2 {
		return client, nil
	}
	return client, []connect.ClientOption{connect.WithProtoJSON()}
}

func exerciseOnce(ctx context.Context, client *http.Client, url, user string, generation uint64, options ...connect.ClientOption) error {
	control := guestv1connect.NewControlClient(client, url, options...)
	restored := connect.NewRequest(&guestpb.RestoreRequest{
		SandboxId: "warm", Generation: generation, WallClockNs: time.Now().UnixNano(), Entropy: make([]byte, 32),
		Hostname: "warm", MachineId: "00000000000000000000000000000000",
		AccessToken: warmToken, ControlToken: warmToken, DefaultUser: user, Envs: map[string]string{"WARM": "1"},
	})
	restored.Header().Set(restore.TokenHeader, warmToken)
	if _, err := control.Restore(ctx, restored); err != nil {
		return fmt.Errorf("warm up restore: %w", err)
	}
	thaw := connect.NewRequest(&guestpb.ThawRequest{Generation: generation})
	thaw.Header().Set(restore.TokenHeader, warmToken)
	if _, err := control.Thaw(ctx, thaw); err != nil {
		return fmt.Errorf("warm up thaw: %w", err)
	}
	return exerciseCommand(ctx, client, url, options...)
}

func exerciseCommand(ctx context.Context, client *http.Client, url string, options ...connect.ClientOption) error {
	start := connect.NewRequest(&processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/bin/echo", Args: []string{"warm"}}})
	start.Header().Set("X-Access-Token", warmToken)
	stream, err := processconnect.NewProcessClient(client, url, options...).Start(ctx, start)
	if err != nil {
		return fmt.Errorf("warm up command: %w", err)
	}
	defer func() { _ = stream.Close() }()
	var out bytes.Buffer
	for stream.Receive() {
		out.Write(stream.Msg().GetEvent().GetData().GetStdout())
	}
	if err := stream.Err(); err != nil {
		return fmt.Errorf("warm up command: %w", err)
	}
	if out.String() != "warm\n" {
		return fmt.Errorf("warm up command: output %q", out.String())
	}
	return nil
}
