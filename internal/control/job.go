package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/httpapi"
	"github.com/croftproject/croft/internal/image"
	"github.com/croftproject/croft/internal/ledger"
	"github.com/croftproject/croft/internal/state"
	"github.com/croftproject/croft/internal/store"
)

// jobList are the use cases of jobs.
type jobList struct{ *Control }

var errNoJobs = api.Errorf(api.CodeMethod, "jobs are made by the acts that they do, such as the import of an image")

func (c jobList) Create(context.Context, httpapi.Caller, string, httpapi.Create[api.JobSpec]) (*api.Job, error) {
	return nil, errNoJobs
}

func (c jobList) Update(context.Context, httpapi.Caller, string, string, httpapi.Update[api.JobSpec]) (*api.Job, error) {
	return nil, errNoJobs
}

func (c jobList) Get(_ context.Context, who httpapi.Caller, tenant, name string) (*api.Job, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	c.ix.mu.RLock()
	defer c.ix.mu.RUnlock()
	if e := c.ix.job(tenant, name); e != nil {
		out := *e.obj.(*api.Job)
		return &out, nil
	}
	return nil, missing(kindJob, tenant, name)
}

// job finds a tenant's job by name, which ends with its id, or by id. One of a tenant that had the name before is none.
func (ix *index) job(tenant, name string) *entry {
	id := name[max(0, len(name)-26):]
	e, owner := ix.tables[kindJob].byID[id], ix.tenant(tenant)
	if e == nil || owner == nil || e.meta.Tenant != tenant || e.meta.Created.Before(owner.Created) || (name != id && name != e.meta.Name) {
		return nil
	}
	return e
}

func (c jobList) List(_ context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions) (httpapi.Raw, error) {
	return c.listFor(who, kindJob, tenant, o)
}

func (c jobList) Watch(ctx context.Context, who httpapi.Caller, tenant string, o httpapi.ListOptions, from int64) (<-chan []byte, error) {
	return c.watchFor(ctx, who, kindJob, tenant, o, from)
}

// Delete forgets a job that has ended.
func (c jobList) Delete(ctx context.Context, who httpapi.Caller, tenant, name string, o httpapi.DeleteOptions) (*api.Job, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	var last api.Job
	_, err := c.write(ctx, func(d *draft) error {
		e := d.ix.job(tenant, name)
		if e == nil {
			return missing(kindJob, tenant, name)
		}
		last = *e.obj.(*api.Job)
		if err := matchRevision(kindJob, &last.Meta, o.Revision); err != nil {
			return err
		}
		if last.Status.Phase == api.JobRunning {
			return api.Errorf(api.CodeWrongState, "job %s is running", last.Name)
		}
		d.remove(state.Jobs + last.ID)
		return nil
	})
	return &last, err
}

// jobs are those that run in this process.
type jobs struct {
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	// content is held while content is removed, and while content that was made is entered in the record of an image: so
	// none is removed that is about to be used.
	content sync.Mutex
}

func newJobs(ctx context.Context) *jobs {
	w := &jobs{}
	w.ctx, w.cancel = context.WithCancel(ctx)
	return w
}

func (w *jobs) close() {
	w.cancel()
	w.running.Wait()
}

// making is an image while a job makes it.
type making struct {
	who  httpapi.Caller
	job  *state.Job
	meta api.Meta
	spec api.ImageSpec
	do   func(context.Context, func(string, int)) (image.Content, error)
}

// ImportImage imports an image. An upload is read to its end, and a failed import of it is an error, which names what is
// wrong with it; with a registry source the job is answered at once.
func (c *Control) ImportImage(ctx context.Context, who httpapi.Caller, tenant string, r httpapi.ImageImport) (*api.Job, error) {
	source := "upload"
	if r.Registry != "" {
		source = r.Registry
	}
	request := struct {
		Name, Source string
		Shared       bool
		Labels       map[string]string
	}{r.Name, source, r.Shared, r.Labels}
	return c.startImage(ctx, who, tenant, request, making{
		meta: api.Meta{Name: r.Name, Labels: r.Labels}, spec: api.ImageSpec{Shared: r.Shared},
		job: &state.Job{Job: api.Job{Spec: api.JobSpec{Kind: "image-import", Object: r.Name, Source: source}}},
		do: func(ctx context.Context, progress func(string, int)) (image.Content, error) {
			return c.o.Images.Import(ctx, image.Source{Reader: r.Body, Registry: r.Registry, PlainHTTP: r.PlainHTTP, Limit: c.o.ImageLimit}, progress)
		},
	}, r.Body != nil)
}

// BuildImage starts the build of a built-in image.
func (c *Control) BuildImage(ctx context.Context, who httpapi.Caller, tenant, name, builtin string, shared bool) (*api.Job, error) {
	if builtin != "micro" && builtin != "debian-12" {
		var f faults
		f.add("/builtin", "%s is no built-in image: there are micro and debian-12", quote(builtin))
		return nil, f.err()
	}
	return c.startImage(ctx, who, tenant, []any{name, builtin, shared}, making{
		meta: api.Meta{Name: name}, spec: api.ImageSpec{Shared: shared},
		job: &state.Job{Job: api.Job{Spec: api.JobSpec{Kind: "image-build", Object: name, Source: builtin}}},
		do: func(ctx context.Context, progress func(string, int)) (image.Content, error) {
			return c.o.Images.Build(ctx, builtin, progress)
		},
	}, false)
}

// startImage records a job and runs it: to its end, where wait is set, else beside.
func (c *Control) startImage(ctx context.Context, who httpapi.Caller, tenant string, request any, m making, wait bool) (*api.Job, error) {
	if err := authorize(who, tenant); err != nil {
		return nil, err
	}
	if m.spec.Shared {
		if err := operatorOnly(who, "share images"); err != nil {
			return nil, err
		}
	}
	if err := c.tenantKnown(tenant); err != nil {
		return nil, err
	}
	if err := checkImage(&state.Image{Meta: m.meta, Spec: m.spec}); err != nil {
		return nil, err
	}
	m.meta.Tenant, m.who = tenant, who
	meta := func(j *api.Job) *api.Meta { return &j.Meta }
	job, err := once(ctx, c, who, kindJob, tenant, request, meta, func(keep remember) (*api.Job, error) {
		return c.beginJob(ctx, &m, keep)
	})
	if err != nil {
		return nil, err
	}
	if m.job.ID == "" { // it was begun before, with the same key
		return c.begun(ctx, job, wait)
	}
	if !wait {
		c.work.running.Go(func() { c.runJob(c.work.ctx, &m) }) //nolint:errcheck // it is in the job
		return job, nil
	}
	c.work.running.Add(1)
	defer c.work.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.work.ctx, cancel)()
	if err := c.runJob(ctx, &m); err != nil {
		return nil, err
	}
	return shown[api.Job](c, kindJob, m.job.ID)
}

// begun answers a request whose job was begun before: with the job as it is now. Where the request would have waited for
// the job's end, a failure is an error, as it was for the first one.
func (c *Control) begun(ctx context.Context, first *api.Job, wait bool) (*api.Job, error) {
	now, revision, err := store.Get[state.Job](ctx, c.o.Store, state.Jobs+first.ID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, api.Errorf(api.CodeNotFound, "job %s, which this Idempotency-Key began, is gone", first.Name)
	case err != nil:
		return nil, unavailable(err)
	case wait && now.Status.Phase == api.JobFailed:
		return nil, api.Errorf(now.Status.Code, "%s", now.Status.Error)
	}
	c.visible(ctx, revision)
	now.Revision = revision
	return &now.Job, nil
}

// beginJob records that a job runs. What would make its image impossible is found out before the work.
func (c *Control) beginJob(ctx context.Context, m *making, keep remember) (*api.Job, error) {
	id := c.ids.next()
	var answer api.Job
	revision, err := c.write(ctx, func(d *draft) error {
		if d.ix.tables[kindImage].holds(m.meta.Tenant, m.meta.Name) {
			return taken(kindImage, m.meta.Name)
		}
		trial := &draft{ix: d.ix, seen: map[string]bool{}}
		short, err := trial.charge(m.meta.Tenant, ledger.Usage{}, ledger.Usage{Images: 1})
		if err == nil {
			err = overQuota(short)
		}
		if err != nil {
			return err
		}
		m.job.Meta = api.Meta{Name: m.job.Spec.Kind + "-" + id, Tenant: m.meta.Tenant, ID: id, Created: c.o.Now().UTC()}
		m.job.HostID = c.ownHost()
		m.job.Status = api.JobStatus{Phase: api.JobRunning, Step: "begin"}
		answer = m.job.Job
		d.make(state.Jobs+id, m.job)
		keep(d, &answer)
		return nil
	})
	if err != nil {
		m.job.ID = ""
		return nil, err
	}
	answer.Revision = revision
	return &answer, nil
}

// runJob makes the image and records how it ended. Its error is what went wrong, as a problem.
func (c *Control) runJob(ctx context.Context, m *making) error {
	content, err := m.do(ctx, c.progress(ctx, m))
	if err == nil {
		err = c.enter(ctx, m, content)
	}
	if err == nil {
		return nil
	}
	problem := imageProblem(ctx, err)
	end := context.WithoutCancel(ctx) // that it ended is recorded even where that is why
	_, recorded := c.write(end, func(d *draft) error {
		r, ok := d.ix.jobs[m.job.ID]
		if !ok {
			return nil
		}
		d.Frees = true
		next := *r.v
		next.Status.Phase, next.Status.Error, next.Status.Code = api.JobFailed, problem.Error(), problem.Code
		next.Status.Finished = c.o.Now().UTC()
		d.put(state.Jobs+m.job.ID, &next)
		if d.ix.job(m.meta.Tenant, m.job.ID) != nil { // else the event would be another tenant's
			c.event(d, m.who, kindImage, &m.meta, "ImportFailed", "%s", problem.Error())
		}
		return nil
	})
	if recorded != nil {
		c.o.Logger.Error("record the end of a job", "job", m.job.Name, "error", recorded)
	}
	return problem
}

// progress is what an import tells its steps to: they are recorded when the step changes, and twice a second.
func (c *Control) progress(ctx context.Context, m *making) func(string, int) {
	var mu sync.Mutex
	var last time.Time
	var step string
	return func(now string, percent int) {
		mu.Lock()
		defer mu.Unlock()
		if now == step && c.o.Now().Sub(last) < 500*time.Millisecond {
			return
		}
		step, last = now, c.o.Now()
		_, err := c.write(ctx, func(d *draft) error {
			r, ok := d.ix.jobs[m.job.ID]
			if !ok || r.v.Status.Phase != api.JobRunning {
				return nil
			}
			next := *r.v
			next.Status.Step, next.Status.Progress = now, max(0, min(100, percent))
			d.put(state.Jobs+m.job.ID, &next)
			return nil
		})
		if err != nil && ctx.Err() == nil {
			c.o.Logger.Warn("record the progress of a job", "job", m.job.Name, "error", err)
		}
	}
}

// enter makes the image's record out of its content, and ends the job, in one transaction.
func (c *Control) enter(ctx context.Context, m *making, content image.Content) error {
	c.work.content.Lock()
	defer c.work.content.Unlock()
	if _, err := c.o.Images.Get(ctx, content.Digest); err != nil {
		return fmt.Errorf("the content is gone again; try once more: %w", err)
	}
	id := c.ids.next()
	_, err := c.admit(ctx, func(d *draft) error {
		r := d.ix.jobs[m.job.ID]
		if d.ix.job(m.meta.Tenant, m.job.ID) == nil {
			return api.Errorf(api.CodeConflict, "job %s is gone, or its tenant", m.job.Name)
		}
		if d.ix.tables[kindImage].holds(m.meta.Tenant, m.meta.Name) {
			return taken(kindImage, m.meta.Name)
		}
		short, err := d.charge(m.meta.Tenant, ledger.Usage{}, ledger.Usage{Images: 1})
		if err == nil {
			err = overQuota(short)
		}
		if err != nil {
			return err
		}
		img := &state.Image{Meta: m.meta, Spec: m.spec, Status: api.ImageStatus{
			Digest: content.Digest, Size: content.Size, Models: content.Models, Format: content.Format,
			MinDisk: content.MinDisk, App: content.App, Source: m.job.Spec.Source,
		}}
		img.Meta.ID, img.Meta.Created = id, c.o.Now().UTC()
		d.make(state.Images+id, img)
		d.name(kindImage, m.meta.Tenant, m.meta.Name, id)
		done := *r.v
		done.Status = api.JobStatus{Phase: api.JobDone, Step: "done", Progress: 100, Finished: c.o.Now().UTC()}
		d.put(state.Jobs+m.job.ID, &done)
		c.event(d, m.who, kindImage, &img.Meta, "Created", "%s, %s, for %v", content.Format, content.Size.Approx(), content.Models)
		return nil
	})
	if err != nil {
		c.dropContent(ctx, content.Digest)
	}
	return err
}

// imageProblem makes a problem of what went wrong with an image.
func imageProblem(ctx context.Context, err error) *api.Problem {
	var p *api.Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, image.ErrBad):
		return api.Errorf(api.CodeBadImage, "%v", err)
	case ctx.Err() != nil:
		return api.Errorf(api.CodeUnavailable, "it was broken off: the upload or the daemon ended")
	}
	return api.Errorf(api.CodeInternal, "%v", err)
}

// failLostJobs marks the jobs that a daemon of this host did not end: they died with it. It returns their number.
func (c *Control) failLostJobs(ctx context.Context, hostID string) (lost int, err error) {
	_, err = c.write(ctx, func(d *draft) error {
		d.Frees, lost = true, 0
		for id, r := range d.ix.jobs {
			if r.v.HostID != hostID || r.v.Status.Phase != api.JobRunning {
				continue
			}
			next := *r.v
			next.Status.Phase, next.Status.Code = api.JobFailed, api.CodeUnavailable
			next.Status.Error = "the daemon ended while the job ran; start it again"
			next.Status.Finished = c.o.Now().UTC()
			d.put(state.Jobs+id, &next)
			lost++
		}
		return nil
	})
	return lost, err
}
