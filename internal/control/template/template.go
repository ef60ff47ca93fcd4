package template

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/lifecycle"
)

const (
	// syncLimit bounds the question to the host behind a list.
	syncLimit   = 2 * time.Second
	eraseLimit  = 2 * time.Minute
	waitLimit   = 30 * time.Second
	pollEvery   = 100 * time.Millisecond
	hintedSnaps = 5
)

// nameShape of templates that are made here; the host's own may have longer ones.
var nameShape = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// Template is a row.
type Template = store.Template

// Type of a template.
type Type = store.TemplateType

// The types.
const (
	Base     = store.BaseTemplate
	Snapshot = store.SnapshotTemplate
)

// View is a row and its place in the tree.
type View struct {
	*Template
	// Parent is the name of the template that it comes from, "" when that is gone.
	Parent string
	// Children counts the live sandboxes and the templates that come from it directly.
	Children int
}

// Service reads and changes templates. It is safe for concurrent use.
type Service struct {
	lifecycle.Base
	store  *store.Store
	client hostv1connect.HostServiceClient
	log    *slog.Logger
	now    func() time.Time
	erased ledger
}

// New makes a Service; Stop ends it.
func New(s *store.Store, client hostv1connect.HostServiceClient, log *slog.Logger, now func() time.Time) *Service {
	svc := &Service{store: s, client: client, log: log, now: now}
	_, _, _ = svc.Begin(context.Background()) // the first Begin cannot fail
	return svc
}

// CheckName refuses what cannot be the name of a new template.
func CheckName(name string) error {
	if nameShape.MatchString(name) {
		return nil
	}
	return fault.New(fault.Invalid, "", "", fmt.Sprintf("name is %q: must match %s", clip(name), nameShape))
}

// clip keeps a caller's text from filling an error.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// List reads templates, newest first, of one type or ("") of both. It asks the host for its
// own first; a host that is away must not hide what is known.
func (s *Service) List(ctx context.Context, t Type, sandboxID string) ([]View, error) {
	synced := s.syncSoon(ctx)
	rows, err := s.store.Templates(ctx, store.TemplateFilter{Type: t, SourceSandboxID: sandboxID})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 && t != Snapshot && synced != nil {
		return nil, synced
	}
	return s.views(ctx, rows)
}

// syncSoon is Sync, bounded: for those who can do without.
func (s *Service) syncSoon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	return s.Sync(ctx)
}

// Get finds a template by name or id, in any state.
func (s *Service) Get(ctx context.Context, name string) (View, error) {
	row, err := s.find(ctx, name)
	if err != nil {
		return View{}, err
	}
	return s.View(ctx, row)
}

// GetSnapshot is Get of a snapshot.
func (s *Service) GetSnapshot(ctx context.Context, name string) (View, error) {
	v, err := s.Get(ctx, name)
	if err == nil && v.Type != Snapshot {
		return View{}, fault.New(fault.NotFound, "find", "snapshot "+name, "it is a template").
			WithHint("look at it there: roost template ls")
	}
	return v, err
}

// View gives a row its place in the tree.
func (s *Service) View(ctx context.Context, row *Template) (View, error) {
	views, err := s.views(ctx, []*Template{row})
	if err != nil {
		return View{}, err
	}
	return views[0], nil
}

func (s *Service) views(ctx context.Context, rows []*Template) ([]View, error) {
	children, err := s.store.Children(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.store.Templates(ctx, store.TemplateFilter{})
	if err != nil {
		return nil, err
	}
	names := make(map[string]string, len(all))
	for _, row := range all {
		names[row.ID] = row.Name
	}
	out := make([]View, len(rows))
	for i, row := range rows {
		out[i] = View{Template: row, Parent: names[row.ParentID], Children: children[row.ID]}
	}
	return out, nil
}

// Usable finds a template that sandboxes can start from.
func (s *Service) Usable(ctx context.Context, name string) (*Template, error) {
	row, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	switch row.State {
	case store.TemplateReady:
		return row, nil
	case store.TemplateDeleting:
		return nil, s.unknown(ctx, name)
	case store.TemplateCreating:
		return nil, fault.New(fault.FailedPrecondition, "", "", kind(row)+" "+row.Name+" is being made").
			WithHint("try again in a moment")
	default:
		return nil, fault.New(fault.FailedPrecondition, "", "", kind(row)+" "+row.Name+" is lost ("+row.Reason+")").
			WithHint("delete it: " + removal(row))
	}
}

// kind is the word that people have for a row.
func kind(row *Template) string {
	if row.Type == Snapshot {
		return "snapshot"
	}
	return "template"
}

func removal(row *Template) string { return "roost " + kind(row) + " rm " + row.Name }

// find reads a row. A name that is not there may be one that the host has just built.
func (s *Service) find(ctx context.Context, name string) (*Template, error) {
	row, err := s.store.Template(ctx, name)
	if !fault.Is(err, fault.NotFound) {
		return row, err
	}
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	row, err = s.store.Template(ctx, name)
	if fault.Is(err, fault.NotFound) {
		return nil, s.unknown(ctx, name)
	}
	return row, err
}

// unknown tells the known names.
func (s *Service) unknown(ctx context.Context, name string) error {
	err := fault.New(fault.NotFound, "find", "template "+clip(name), "there is none of that name")
	rows, lerr := s.store.Templates(ctx, store.TemplateFilter{})
	if lerr != nil {
		return err
	}
	var bases, snaps []string
	for _, row := range rows { // newest first
		switch {
		case row.State != store.TemplateReady:
		case row.Type == Base:
			bases = append(bases, row.Name)
		default:
			snaps = append(snaps, row.Name)
		}
	}
	if len(bases)+len(snaps) == 0 {
		return err.WithHint("this host has no templates yet; `make run` builds the one named base")
	}
	slices.Sort(bases)
	hint := "known templates: " + strings.Join(bases, ", ")
	if len(snaps) > 0 {
		hint += "; snapshots: " + strings.Join(snaps[:min(len(snaps), hintedSnaps)], ", ")
	}
	if len(snaps) > hintedSnaps {
		hint += ", …"
	}
	return err.WithHint(hint)
}

// hostTemplates asks the host for its templates, by name.
func (s *Service) hostTemplates(ctx context.Context) (map[string]*hostv1.Template, error) {
	resp, err := s.client.ListTemplates(ctx, connect.NewRequest(&hostv1.ListTemplatesRequest{}))
	if err != nil {
		return nil, host.CallError(err, "list", "templates")
	}
	out := make(map[string]*hostv1.Template, len(resp.Msg.GetTemplates()))
	for _, t := range resp.Msg.GetTemplates() {
		out[t.GetName()] = t
	}
	return out, nil
}
