from tests.stand_ins.fixtures import *
from tests.stand_ins.index import Faults, outside_address, refusing, serve
import json, time, sys
def test_try(world, bench, tmp_path):
    def go(label, url, *want, **more):
        t=time.time()
        r=bench.uv("pip","install","--no-cache","--python",sys.executable,"--target",tmp_path/label.replace(" ","-").replace("/","_"),"--no-deps",*(want or ("filelock",)),index=url,**{"UV_HTTP_TIMEOUT":"1",**more})
        print("=====",label,r.returncode,round(time.time()-t,2)); print(r.stderr.strip())
    for label,f in {"whole":{}, "plain":dict(plain=True),"404":dict(status=404),"500":dict(status=500),"503":dict(status=503),"403":dict(status=403),"delay":dict(delay=1.6),"delay short":dict(delay=.3),"silent":dict(silent=True),"without":dict(without=["filelock"]),"hash":dict(wrong_hash=True),"hash plain":dict(wrong_hash=True,plain=True),"cut":dict(body="cut"),"reset":dict(body="reset"),"short":dict(body="short"),"short plain":dict(body="short",plain=True),"redirect":dict(redirect="http://192.0.2.1"),"cred":dict(credentials=("user","pass word"))}.items():
        with serve(world,faults=Faults(**f)) as i:
            go(label,i.url)
            print([ (a.method,a.path,a.authorized) for a in i.asked])
            if label=="cred":
                go("cred with",i.url_with("user","pass word"))
                print([ (a.method,a.path,a.authorized) for a in i.asked])
                go("cred wrong",i.url_with("user","pass wird"))
                print([ (a.method,a.path,a.authorized) for a in i.asked])
    with refusing() as url: go("refused",url)
    print("outside", bool(outside_address()))
    with serve(world,host=outside_address()) as out, serve(world,faults=Faults(redirect=out.url.removesuffix("/simple"))) as i:
        go("redirect outside",i.url); print(out.paths,i.paths)
        go("redirect outside closed",i.url,HTTP_PROXY="http://127.0.0.1:9",NO_PROXY="127.0.0.0/8"); print(out.paths,i.paths)
    for label,f in {"500r":dict(status=500),"silentr":dict(silent=True),"cut":dict(body="cut"), "reset":dict(body="reset"),"404":dict(status=404)}.items():
        with serve(world,faults=Faults(**f)) as i:
            go("retry "+label,i.url,UV_HTTP_RETRIES="1"); print(len(i.asked))
    with serve(world,faults=Faults(status=500)) as i:
            go("retry default",i.url,UV_HTTP_RETRIES="3"); print(len(i.asked))
    with serve(world,faults=Faults(without=["transformers==5.23.0"])) as i:
            go("no version",i.url,"transformers==5.23.0"); print(len(i.asked))
