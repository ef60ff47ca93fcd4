package filesystem

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "github.com/roosthq/roost/api/gen/filesystem"
	"github.com/roosthq/roost/internal/fault"
)

// Bounds of polled watchers: a client that forgets its watcher must not cost memory for ever.
const (
	maxWatchers    = 64
	maxEvents      = 10000
	forgottenAfter = time.Hour
)

// watchers are those read by polling, by id.
type watchers struct {
	mu   sync.Mutex
	byID map[string]*polled
}

// polled is a watch that keeps its events until they are asked for.
type polled struct {
	watch  *watch
	cancel context.CancelFunc

	mu     sync.Mutex
	events []*pb.FilesystemEvent
	failed error
	asked  time.Time
}

// CreateWatcher starts a watch to be polled.
func (s *Service) CreateWatcher(_ context.Context, req *connect.Request[pb.CreateWatcherRequest]) (*connect.Response[pb.CreateWatcherResponse], error) {
	if err := s.watchers.makeRoom(); err != nil {
		return nil, err
	}
	w, err := s.newWatch(req.Header(), req.Msg.GetPath(), req.Msg.GetRecursive(), req.Msg.GetIncludeEntry())
	if err != nil {
		return nil, err
	}
	id := rand.Text()
	s.watchers.add(id, startPolled(w))
	return connect.NewResponse(&pb.CreateWatcherResponse{WatcherId: id}), nil
}

// GetWatcherEvents returns what happened since the last call.
func (s *Service) GetWatcherEvents(_ context.Context, req *connect.Request[pb.GetWatcherEventsRequest]) (*connect.Response[pb.GetWatcherEventsResponse], error) {
	p, err := s.watchers.get(req.Msg.GetWatcherId(), false)
	if err != nil {
		return nil, err
	}
	events, err := p.take()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.GetWatcherEventsResponse{Events: events}), nil
}

// RemoveWatcher ends a watch.
func (s *Service) RemoveWatcher(_ context.Context, req *connect.Request[pb.RemoveWatcherRequest]) (*connect.Response[pb.RemoveWatcherResponse], error) {
	p, err := s.watchers.get(req.Msg.GetWatcherId(), true)
	if err != nil {
		return nil, err
	}
	p.stop()
	return connect.NewResponse(&pb.RemoveWatcherResponse{}), nil
}

func startPolled(w *watch) *polled {
	ctx, cancel := context.WithCancel(context.Background())
	p := &polled{watch: w, cancel: cancel, asked: time.Now()}
	go func() {
		err := w.run(ctx, p.keep)
		w.close()
		p.fail(err)
	}()
	return p
}

func (p *polled) stop() { p.cancel() }

func (p *polled) keep(e *pb.FilesystemEvent) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.events) == maxEvents {
		return fault.New(fault.ResourceExhausted, "watch", p.watch.root, "more events than are kept between two polls").
			WithHint("Poll more often, or watch a smaller directory.")
	}
	p.events = append(p.events, e)
	return nil
}

func (p *polled) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = err
}

// take returns the events kept, then the failure that ended them.
func (p *polled) take() ([]*pb.FilesystemEvent, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = time.Now()
	events := p.events
	p.events = nil
	if len(events) == 0 && p.failed != nil {
		return nil, p.failed
	}
	return events, nil
}

func (p *polled) forgotten() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.asked) > forgottenAfter
}

func (w *watchers) add(id string, p *polled) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.byID[id] = p
}

func (w *watchers) get(id string, remove bool) (*polled, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, ok := w.byID[id]
	if !ok {
		return nil, fault.New(fault.NotFound, "find watcher", id, "no such watcher")
	}
	if remove {
		delete(w.byID, id)
	}
	return p, nil
}

func (w *watchers) makeRoom() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, p := range w.byID {
		if p.forgotten() {
			p.stop()
			delete(w.byID, id)
		}
	}
	if len(w.byID) >= maxWatchers {
		return fault.New(fault.ResourceExhausted, "create watcher", "", "64 watchers exist already").
			WithHint("Remove some with RemoveWatcher.")
	}
	return nil
}

func (w *watchers) closeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, p := range w.byID {
		p.stop()
		delete(w.byID, id)
	}
}
