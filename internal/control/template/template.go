// Package template names what sandboxes start from. The host's list is the truth; a short
// cache spares each create the question, and a name that is not in it asks again.
package template

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/fault"
)

const listFor = 10 * time.Second

// Service lists templates.
type Service struct {
	client hostv1connect.HostServiceClient
	now    func() time.Time

	mu     sync.Mutex
	list   []*hostv1.Template
	listAt time.Time
}

// New makes a Service.
func New(client hostv1connect.HostServiceClient, now func() time.Time) *Service {
	return &Service{client: client, now: now}
}

// List asks the host now.
func (s *Service) List(ctx context.Context) ([]*hostv1.Template, error) {
	resp, err := s.client.ListTemplates(ctx, connect.NewRequest(&hostv1.ListTemplatesRequest{}))
	if err != nil {
		return nil, host.CallError(err, "list", "templates")
	}
	list := resp.Msg.GetTemplates()
	s.mu.Lock()
	s.list, s.listAt = list, s.now()
	s.mu.Unlock()
	return list, nil
}

// Get finds a template by name; an unknown name is told the known ones.
func (s *Service) Get(ctx context.Context, name string) (*hostv1.Template, error) {
	if t := find(s.cached(), name); t != nil {
		return t, nil
	}
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	if t := find(list, name); t != nil {
		return t, nil
	}
	return nil, unknown(list, name)
}

func (s *Service) cached() []*hostv1.Template {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.listAt) >= listFor {
		return nil
	}
	return s.list
}

func find(list []*hostv1.Template, name string) *hostv1.Template {
	for _, t := range list {
		if t.GetName() == name {
			return t
		}
	}
	return nil
}

func unknown(list []*hostv1.Template, name string) error {
	err := fault.New(fault.NotFound, "find", "template "+name, "there is none of that name")
	if len(list) == 0 {
		return err.WithHint("this host has no templates yet; `make run` builds the one named base")
	}
	names := make([]string, len(list))
	for i, t := range list {
		names[i] = t.GetName()
	}
	slices.Sort(names)
	return err.WithHint("known templates: " + strings.Join(names, ", "))
}
