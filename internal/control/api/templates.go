package api

import (
	"context"
	"net/http"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
)

// ListTemplates lists templates and snapshots.
func (a *API) ListTemplates(ctx context.Context, _ v1.ListTemplatesRequestObject) (v1.ListTemplatesResponseObject, error) {
	list, err := a.templates.List(ctx, "", "")
	if err != nil {
		return nil, err
	}
	return v1.ListTemplates200JSONResponse{Templates: templatesOf(list)}, nil
}

// GetTemplate gives one template.
func (a *API) GetTemplate(ctx context.Context, r v1.GetTemplateRequestObject) (v1.GetTemplateResponseObject, error) {
	t, err := a.templates.Get(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return v1.GetTemplate200JSONResponse(templateOf(t)), nil
}

// CreateTemplate makes a template, with progress when the client takes lines. The template
// stands when its client has left.
func (a *API) CreateTemplate(ctx context.Context, r v1.CreateTemplateRequestObject) (v1.CreateTemplateResponseObject, error) {
	create := func(progress func(step, detail string)) (v1.Template, error) {
		t, err := a.sandboxes.CreateTemplate(ctx, sandbox.TemplateRequest{Name: r.Body.Name, From: r.Body.From,
			DiskOnly: or(r.Body.DiskOnly, false), Progress: progress})
		if err != nil {
			return v1.Template{}, err
		}
		return templateOf(t), nil
	}
	if wantsLines(ctx) {
		l, err := follow(ctx, a, templateEvent, create)
		if err != nil {
			return nil, err
		}
		return templateLines{l}, nil
	}
	t, err := create(nil)
	hangUpOnGone(ctx)
	if err != nil {
		return nil, err
	}
	return v1.CreateTemplate201JSONResponse(t), nil
}

func templateEvent(p *v1.Progress, t *v1.Template, err *v1.Error) any {
	return v1.TemplateEvent{Progress: p, Template: t, Error: err}
}

type templateLines struct{ *lines[v1.Template] }

func (l templateLines) VisitCreateTemplateResponse(w http.ResponseWriter) error { return l.write(w) }

// DeleteTemplate removes a template or snapshot.
func (a *API) DeleteTemplate(ctx context.Context, r v1.DeleteTemplateRequestObject) (v1.DeleteTemplateResponseObject, error) {
	if err := a.templates.Delete(ctx, r.Name, ""); err != nil {
		return nil, err
	}
	return v1.DeleteTemplate204Response{}, nil
}
