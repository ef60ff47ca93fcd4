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
	"github.com/roosthq/roost/bench/harness"
)

// phases are named durations in seconds, of several runs.
type phases struct {
	names []string
	all   map[string][]float64
}

func (p *phases) add(name string, seconds float64) {
	if p.all == nil {
		p.all = map[string][]float64{}
	}
	if _, known := p.all[name]; !known {
		p.names = append(p.names, name)
	}
	p.all[name] = append(p.all[name], seconds)
}

// of times a call that changes a sandbox, and keeps its phases as the API tells them.
func (p *phases) of(ctx context.Context, s *server, id, name string, call func(context.Context, string) error) (float64, error) {
	began := time.Now()
	err := call(ctx, id)
	took := time.Since(began).Seconds()
	if err != nil {
		return 0, err
	}
	return took, p.addOf(ctx, s, id, name, took)
}

func (p *phases) addOf(ctx context.Context, s *server, id, name string, whole float64) error {
	box, err := s.api.GetSandboxWithResponse(ctx, id)
	if err != nil {
		return err
	}
	if box.JSON200 == nil || box.JSON200.Phases == nil {
		return fmt.Errorf("get sandbox: %s", box.Body)
	}
	for _, one := range *box.JSON200.Phases {
		p.add(name+": "+one.Name, one.Ms/1000)
	}
	p.add(name+", the whole call", whole)
	return nil
}

func (p *phases) print(title string) {
	fmt.Fprintf(os.Stderr, "  %s, medians:\n", title)
	for _, name := range p.names {
		fmt.Fprintf(os.Stderr, "  %8.1f ms %s\n", harness.Median(p.all[name])*1000, name)
	}
}

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
			return execDirect(ctx, processconnect.NewProcessClient(agent, guest), "", "/bin/true")
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

// execDirect runs a command by the guest's own API; the agent fills in the token by itself.
func execDirect(ctx context.Context, c processconnect.ProcessClient, token, cmd string, args ...string) error {
	no := false
	req := connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: cmd, Args: args}, Stdin: &no,
	})
	if token != "" {
		req.Header().Set("X-Access-Token", token)
	}
	stream, err := c.Start(ctx, req)
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
