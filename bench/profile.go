package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"time"

	"connectrpc.com/connect"

	"github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
)

// profileExec prints where the time of a command goes, by taking the way shorter step by step.
func (s *server) profileExec(ctx context.Context, id string) error {
	agent := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(s.data, "agent.sock"))
	}}}
	defer agent.CloseIdleConnections()
	guest := "http://agent/sandboxes/" + id + "/guest"
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"exec of true through the API", func(ctx context.Context) error {
			_, err := s.exec(ctx, id, "/bin/true")
			return err
		}},
		{"exec of true through the agent alone", func(ctx context.Context) error {
			return execDirect(ctx, processconnect.NewProcessClient(agent, guest))
		}},
		{"the guest's health through the agent (one request, no process)", func(ctx context.Context) error {
			return get(ctx, agent, guest+"/health")
		}},
		{"one row through the API (control plane and agent, no guest)", func(ctx context.Context) error {
			_, err := s.api.GetSandboxWithResponse(ctx, id)
			return err
		}},
	}
	fmt.Fprintln(os.Stderr, "  where an exec's time goes, medians of 30:")
	for _, step := range steps {
		took := make([]time.Duration, 0, 30)
		for range 30 {
			began := time.Now()
			if err := step.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			took = append(took, time.Since(began))
		}
		sort.Slice(took, func(i, k int) bool { return took[i] < took[k] })
		fmt.Fprintf(os.Stderr, "  %8.1f ms %s\n", float64(took[15].Microseconds())/1000, step.name)
	}
	return nil
}

func execDirect(ctx context.Context, c processconnect.ProcessClient) error {
	no := false
	stream, err := c.Start(ctx, connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "/bin/true"}, Stdin: &no,
	}))
	if err != nil {
		return err
	}
	for stream.Receive() {
		continue
	}
	return errors.Join(stream.Err(), stream.Close())
}

func get(ctx context.Context, c *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
